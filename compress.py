"""Compress trained networks and measure them: `python compress.py -m model=vgg19,resnet34 method=dynamic,static`.

The steps themselves are in qexp/jobs/compress.py.
"""

from qexp.cli import program
from qexp.startup import end_at_once

main = program("compress")

if __name__ == "__main__":
    main()
    end_at_once()
