"""Time artifacts or networks.

    python benchmark.py -m artifact=outputs/artifacts/NAME engine=eager,openvino batch_size=1,8,32

The steps themselves are in qexp/jobs/benchmark.py.
"""

from qexp.cli import program
from qexp.startup import end_at_once

main = program("benchmark")

if __name__ == "__main__":
    main()
    end_at_once()
