"""Measures the size of the file that the engine loads, as it is on disk, ideally packed, and compressed."""

from __future__ import annotations

import zipfile
from pathlib import Path

import zstandard

from qexp.measure.base import Context, Measure
from qexp.metrics import METRICS
from qexp.records import Measurement

WHENCE = {False: "estimated", True: "measured"}  # how the packed size is known, by whether the weights are coded


class Size(Measure):
    """Size on disk, packed and compressed, in MB."""

    def __init__(self, zstd_level: int):
        self.zstd_level = zstd_level

    def measure(self, context: Context) -> list[Measurement]:
        file = context.candidate.file
        size = file.stat().st_size
        compressed = len(zstandard.ZstdCompressor(level=self.zstd_level, threads=-1).compress(file.read_bytes()))
        artifact = context.candidate.artifact
        # The file of a simulated format, of less than 8 bits, holds packed weights, whose bytes are counted. At 8 bits
        # engines add what their kernels need, so that the size is estimated. Coded weights were already counted.
        packed = (
            (tensor_bytes(file), "measured") if artifact.simulated else (artifact.packed_bytes, WHENCE[artifact.coded])
        )
        found = [
            METRICS["size_mb"].of(size / 1e6),
            METRICS["packed_size_mb"].of(packed[0] / 1e6, packed[1]),
            METRICS["zstd_size_mb"].of(compressed / 1e6),
        ]
        if context.exact:
            found.append(METRICS["size_ratio"].of(context.exact.file.stat().st_size / size))
        return found


def tensor_bytes(file: Path) -> int:
    """Bytes of all weights, scales and biases in a `.pt2` archive, without the graph that computes with them."""
    with zipfile.ZipFile(file) as archive:
        return sum(entry.file_size for entry in archive.infolist() if "/data/weights/weight_" in entry.filename)
