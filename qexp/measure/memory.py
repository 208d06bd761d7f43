"""Peak memory of the measuring child while it loads and runs the network, above the imported engine; and of a GPU's allocator."""

from __future__ import annotations

from qexp.measure.base import Bench, Measure
from qexp.types import Measurement


class Memory(Measure):
    def measure(self, bench: Bench) -> list[Measurement]:
        start = bench.subject.start
        peaks = {"memory_mb": start["memory_mb"], "device_memory_mb": start["device_memory_mb"]}
        if peaks["memory_mb"] is None:
            bench.notes["memory_mb"] = "this system has no resettable high-water mark of a process's memory"
        return [Measurement(name, value, "MB") for name, value in peaks.items() if value is not None]
