"""torch.profiler's table of operators by memory, for engines that run on torch."""

from __future__ import annotations

from qexp.measure.base import Bench, Measure
from qexp.types import Measurement


class Operators(Measure):
    def measure(self, bench: Bench) -> list[Measurement]:
        bench.subject.start  # noqa: B018  (loads the network)
        profile = bench.subject.child.ask("operators")["profile"]
        if profile is None:
            return []
        bench.texts["operators.txt"] = profile["text"]
        return [Measurement("allocated_mib", profile["allocated_mib"], "MiB")]
