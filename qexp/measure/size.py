"""Bytes on disk of the file that the engine loads, beside the ideal packed and the compressed size."""

from __future__ import annotations

import zstandard

from qexp.measure.base import Bench, Measure
from qexp.types import Measurement


class Size(Measure):
    """zstd_level: 1 (fast) to 22 (small)."""

    def __init__(self, zstd_level: int = 3):
        self.zstd_level = zstd_level

    def measure(self, bench: Bench) -> list[Measurement]:
        file = bench.subject.file
        size = file.stat().st_size
        compressed = len(zstandard.ZstdCompressor(level=self.zstd_level, threads=-1).compress(file.read_bytes()))
        found = [
            Measurement("size_mb", size / 1e6, "MB"),
            Measurement("packed_size_mb", bench.subject.artifact.packed_bytes / 1e6, "MB", "estimated"),
            Measurement("zstd_size_mb", compressed / 1e6, "MB"),
        ]
        if bench.baseline:
            found.append(Measurement("size_ratio", bench.baseline.file.stat().st_size / size, "x"))
        return found
