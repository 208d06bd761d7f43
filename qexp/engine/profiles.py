"""What the profilers of engines tell of operators: how long each kind takes, and in what numbers it computes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

INTEGER, FLOAT, CONVERSION, OTHER = "integer", "floating point", "conversion", "other"
WARM_CALLS, CALLS = 3, 10  # calls before a profile, and those that it is the mean of


@dataclass(frozen=True)
class OperatorTime:
    """The time of all operators of one type in one call.

    Attributes:
        name: Type of the operators, as the engine calls it.
        calls: How many there are.
        self_cpu_time_us: Microseconds of all of them together.
        computes: INTEGER, FLOAT, CONVERSION between two number formats or layouts, or OTHER, such as arithmetic on
            sizes.
    """

    name: str
    calls: float
    self_cpu_time_us: float
    computes: str


def profile(operators: Iterable[tuple[str, str, float]], calls: int) -> dict[str, Any]:
    """Put together what a profiler told of several calls.

    Args:
        operators: The type of each operator that ran, what it computes (INTEGER, FLOAT, CONVERSION or OTHER), and the
            microseconds that it took.
        calls: How many calls these are of.

    Returns:
        `text` (a table, the slowest first) and `rows` (the same as data) for one call, as `Engine.operators` does.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for name, computes, taken in operators:
        found.setdefault((name, computes), []).append(taken)
    rows = [
        OperatorTime(name, len(taken) / calls, sum(taken) / calls, computes)
        for (name, computes), taken in found.items()
    ]
    rows.sort(key=lambda row: -row.self_cpu_time_us)
    lines = [f"{'operator':32} {'computes':16} {'calls':>6} {'us':>10}"]
    lines += [f"{row.name:32} {row.computes:16} {row.calls:6.0f} {row.self_cpu_time_us:10.1f}" for row in rows]
    return {"text": "\n".join(lines) + "\n", "rows": [asdict(row) for row in rows], "allocated_mib": None}
