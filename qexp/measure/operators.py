"""torch.profiler's table of operators by memory and time, for engines that run on torch."""

from __future__ import annotations

import json

from qexp.measure.base import Bench, Measure
from qexp.types import Measurement


class Operators(Measure):
    def measure(self, bench: Bench) -> list[Measurement]:
        bench.subject.start  # noqa: B018  (loads the network)
        profile = bench.subject.child.ask("operators")["profile"]
        if profile is None:
            bench.notes["allocated_mib"] = f"{bench.subject.engine.name} has no profiler of operators"
            return []
        bench.texts["operators.txt"] = profile["text"]
        bench.texts["operators.json"] = json.dumps(profile["rows"], indent=1)
        return [Measurement("allocated_mib", profile["allocated_mib"], "MiB")]
