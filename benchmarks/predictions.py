"""Compares how often `qexp.load(...).predict` is right on image files with what was recorded for the whole test part.

    uv run python benchmarks/predictions.py artifact=outputs/artifacts/NAME images=data/cifar10-jpeg/test

`images` is a folder with one folder of image files per class. Every file is read, decoded and resized like a user's
photo.
"""

from __future__ import annotations

import sys
from pathlib import Path

from common import machine

import qexp
from qexp.files import RECORDS
from qexp.tracking.store import read_record

AT_ONCE = 500  # images


def main(options: list[str]) -> None:
    given = dict(option.split("=", 1) for option in options)
    artifact, images = Path(given["artifact"]), Path(given["images"])
    network = qexp.load(artifact)
    files = sorted(file for file in images.glob("*/*") if file.is_file())
    right = 0
    for start in range(0, len(files), AT_ONCE):
        batch = files[start : start + AT_ONCE]
        right += sum(found.label == file.parent.name for found, file in zip(network.predict(batch), batch, strict=True))
    records = [read_record(file) for file in (artifact / RECORDS).glob("*.json")]
    recorded = sorted({record.metrics["top1"] for record in records if "top1" in record.metrics})
    print(f"{artifact.name}: {right} of {len(files)} files right, {right / len(files):.4f}; recorded: {recorded}")
    print(f"\n{machine()}")


if __name__ == "__main__":
    main(sys.argv[1:])
