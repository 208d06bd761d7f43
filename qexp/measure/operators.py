"""Profiles the memory and time of operators with torch.profiler, for engines that run on PyTorch."""

from __future__ import annotations

import json

from qexp.measure.base import Context, Measure
from qexp.metrics import METRICS
from qexp.records import Measurement


class Operators(Measure):
    def measure(self, context: Context) -> list[Measurement]:
        context.candidate.start()
        profile = context.candidate.ready_child().ask("operators")["profile"]
        if profile is None:
            context.notes["allocated_mib"] = f"{context.candidate.engine.name} has no profiler of operators"
            return []
        context.texts["operators.txt"] = profile["text"]
        context.texts["operators.json"] = json.dumps(profile["rows"], indent=1)
        return [METRICS["allocated_mib"].of(profile["allocated_mib"])]
