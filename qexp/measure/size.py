"""Bytes on disk of the file that the engine loads, beside the ideal packed and the compressed size."""

from __future__ import annotations

import zipfile
from pathlib import Path

import zstandard

from qexp.measure.base import Context, Measure
from qexp.metrics import METRICS
from qexp.types import Measurement

WHENCE = {False: "estimated", True: "measured"}


class Size(Measure):
    def __init__(self, zstd_level: int):
        self.zstd_level = zstd_level

    def measure(self, context: Context) -> list[Measurement]:
        file = context.candidate.file
        size = file.stat().st_size
        compressed = len(zstandard.ZstdCompressor(level=self.zstd_level, threads=-1).compress(file.read_bytes()))
        artifact = context.candidate.artifact
        # At less than 8 bits weights lie packed in the file; at 8, engines add to them what their kernels need. Coded ones were counted.
        packed = (
            (tensor_bytes(file), "measured") if artifact.simulated else (artifact.packed_bytes, WHENCE[artifact.coded])
        )
        found = [
            METRICS["size_mb"].of(size / 1e6),
            METRICS["packed_size_mb"].of(packed[0] / 1e6, packed[1]),
            METRICS["zstd_size_mb"].of(compressed / 1e6),
        ]
        if context.baseline:
            found.append(METRICS["size_ratio"].of(context.baseline.file.stat().st_size / size))
        return found


def tensor_bytes(file: Path) -> int:
    """Bytes of all weights, scales and biases in a `.pt2` archive, without the graph that computes with them."""
    with zipfile.ZipFile(file) as archive:
        return sum(entry.file_size for entry in archive.infolist() if "/data/weights/weight_" in entry.filename)
