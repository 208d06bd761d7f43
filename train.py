"""Train a network on a dataset: `python train.py model=resnet20 data=folder data.root=...` writes a Baseline folder.

The steps themselves are in qexp/jobs/train.py.
"""

from qexp.cli import program
from qexp.startup import end_at_once

main = program("train")

if __name__ == "__main__":
    main()
    end_at_once()
