"""Measures peak memory while the measuring child loads and runs the network.

This is the child's memory beyond that of the imported engine, and the memory of a GPU's allocator.
"""

from __future__ import annotations

from qexp.measure.base import Context, Measure
from qexp.metrics import METRICS
from qexp.records import Measurement


class Memory(Measure):
    def measure(self, context: Context) -> list[Measurement]:
        start = context.candidate.start()
        peaks = {"memory_mb": start["memory_mb"], "device_memory_mb": start["device_memory_mb"]}
        if peaks["memory_mb"] is None:
            context.notes["memory_mb"] = "this system has no resettable high-water mark of a process's memory"
        return [METRICS[name].of(value) for name, value in peaks.items() if value is not None]
