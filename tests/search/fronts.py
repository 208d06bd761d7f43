"""What the tests of a search share: two objectives, and the front of what was found, by comparing all with all."""

from __future__ import annotations

from typing import Any

OBJECTIVES = {"val_top1": "maximize", "size_mb": "minimize"}


def pareto(found: list[tuple[Any, list[float]]]) -> list[tuple[Any, list[float]]]:
    """Return those that no other dominates.

    One dominates another if it is at least as good in both objectives and better in one. The first is maximised.
    """

    def beats(a: list[float], b: list[float]) -> bool:
        return a[0] >= b[0] and a[1] <= b[1] and a != b

    return [(name, ours) for name, ours in found if not any(beats(theirs, ours) for _, theirs in found)]
