"""Profiles operators with the engine's own profiler: their time, what they compute in, and on torch their memory."""

from __future__ import annotations

import json
from typing import Any

from qexp.engine.profiles import CONVERSION, FLOAT, INTEGER
from qexp.measure.base import Context, Measure
from qexp.metrics import METRICS
from qexp.records import Measurement

NAMED = 3  # types of operators of one kind that a sentence names
LEAST_SHARE = 0.05  # of the time, from which anything is worth mentioning


class Operators(Measure):
    def measure(self, context: Context) -> list[Measurement]:
        context.candidate.start()
        profile = context.candidate.ready_child().ask("operators")["profile"]
        name = context.candidate.engine.name
        if profile is None:
            context.notes["allocated_mib"] = f"{name} has no profiler of operators"
            return []
        rows = profile["rows"]
        context.texts["operators.txt"] = profile["text"]
        context.texts["operators.json"] = json.dumps(rows, indent=1)
        found = []
        if profile["allocated_mib"] is None:
            context.notes["allocated_mib"] = f"{name}'s profiler does not tell what operators allocate"
        else:
            found.append(METRICS["allocated_mib"].of(profile["allocated_mib"]))
        if any("computes" not in row for row in rows):
            return found
        if any(layer.quantized for layer in context.candidate.artifact.layers):
            context.notes["operators"] = sentence(rows)
        shares = {"float_time_share": FLOAT, "conversion_time_share": CONVERSION}
        return [*found, *(METRICS[metric].of(share_of(rows, kind)) for metric, kind in shares.items())]


def share_of(rows: list[dict[str, Any]], kind: str) -> float:
    """The share of the time of all operators that those of one kind take, from the rows of a profile."""
    total = sum(row["self_cpu_time_us"] for row in rows)
    return sum(row["self_cpu_time_us"] for row in rows if row["computes"] == kind) / total if total else 0.0


def sentence(rows: list[dict[str, Any]]) -> str:
    """Say where the time of a network of integers goes.

    Args:
        rows: The rows of a profile, the slowest first.

    Returns:
        Such as `45% of the time goes to floating point (14 HardSwish, 2 Softmax) and 12% to 28 conversions between
        formats`. What integers take is only told where that is most of the time: `83% of the time goes to integers
        (20 ConvInteger) and 10% to floating point (40 Mul, 28 Add)`.
    """
    conversions = round(sum(row["calls"] for row in rows if row["computes"] == CONVERSION))
    several = "s" * (conversions != 1)
    goes_to = {
        INTEGER: f"integers ({named(rows, INTEGER)})",
        FLOAT: f"floating point ({named(rows, FLOAT)})",
        CONVERSION: f"{conversions} conversion{several} between formats",
    }
    least = {INTEGER: 0.5, FLOAT: LEAST_SHARE, CONVERSION: LEAST_SHARE}
    shares = {kind: share_of(rows, kind) for kind in goes_to}
    told = [kind for kind in goes_to if shares[kind] >= least[kind]] or [INTEGER]
    (first, to), *others = [(f"{shares[kind]:.0%}", goes_to[kind]) for kind in told]
    parts = [f"{first} of the time goes to {to}", *(f"{share} to {what}" for share, what in others)]
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def named(rows: list[dict[str, Any]], kind: str) -> str:
    """The types of operators of one kind that take longest, with how many there are of each."""
    of_kind = [f"{row['calls']:.0f} {row['name']}" for row in rows if row["computes"] == kind]
    return ", ".join(of_kind[:NAMED] + ["..."] * (len(of_kind) > NAMED))
