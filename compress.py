"""Compress trained networks and measure them: `python compress.py -m model=vgg19,resnet34 method=dynamic,static`.

The sequence of its steps stands in qexp/jobs/compress.py.
"""

from qexp.cli import end_at_once, program

main = program("compress")

if __name__ == "__main__":
    main()
    end_at_once()
