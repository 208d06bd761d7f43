"""Peak resident memory of the measuring child while it loads and runs the network, above the imported engine."""

from __future__ import annotations

from qexp.measure.base import Bench, Measure
from qexp.types import Measurement


class Memory(Measure):
    def measure(self, bench: Bench) -> list[Measurement]:
        memory_mb = bench.subject.start["memory_mb"]
        return [] if memory_mb is None else [Measurement("memory_mb", memory_mb, "MB")]
