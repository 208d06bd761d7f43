"""Profiles operators with the engine's own profiler: their time, what they compute in, and on torch their memory."""

from __future__ import annotations

import json
from typing import Any

from qexp.measure.base import Context, Measure
from qexp.metrics import METRICS
from qexp.records import Measurement

NAMED = 3  # types of operators in floating point that the sentence names
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
        if profile["allocated_mib"] is not None:
            return [METRICS["allocated_mib"].of(profile["allocated_mib"])]
        context.notes["allocated_mib"] = f"{name}'s profiler does not tell what operators allocate"
        shares = {kind: share_of(rows, kind) for kind in ("floating point", "conversion")}
        if any(layer.quantized for layer in context.candidate.artifact.layers) and (said := sentence(rows)):
            context.notes["operators"] = said
        return [
            METRICS["float_time_share"].of(shares["floating point"]),
            METRICS["conversion_time_share"].of(shares["conversion"]),
        ]


def share_of(rows: list[dict[str, Any]], kind: str) -> float:
    """The share of the time of all operators that those of one kind take, from the rows of a profile."""
    total = sum(row["self_cpu_time_us"] for row in rows)
    return sum(row["self_cpu_time_us"] for row in rows if row["computes"] == kind) / total if total else 0.0


def sentence(rows: list[dict[str, Any]]) -> str:
    """Say where the time goes that a network of integers does not spend on integers.

    Args:
        rows: The rows of a profile, the slowest first.

    Returns:
        Such as `45% of the time goes to floating point (14 HardSwish, 2 Softmax) and 12% to 28 conversions`, or an
        empty text if nearly all of the time goes to integers.
    """
    floats = [row for row in rows if row["computes"] == "floating point"]
    conversions = [row for row in rows if row["computes"] == "conversion"]
    parts = []
    if (share := share_of(rows, "floating point")) >= LEAST_SHARE:
        named = ", ".join(f"{row['calls']:.0f} {row['name']}" for row in floats[:NAMED])
        parts.append(f"{share:.0%} of the time goes to floating point ({named}{', ...' * (len(floats) > NAMED)})")
    if (share := share_of(rows, "conversion")) >= LEAST_SHARE:
        count = round(sum(row["calls"] for row in conversions))
        what = f"{count} conversion{'s' * (count != 1)} between formats"
        parts.append(f"{share:.0%} {'' if parts else 'of the time goes '}to {what}")
    return " and ".join(parts)
