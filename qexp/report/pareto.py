"""The Pareto front of runs that cost little and are worth much, and its knee."""

from __future__ import annotations

import math
from collections.abc import Sequence


def pareto_front(costs: Sequence[float], benefits: Sequence[float]) -> list[int]:
    """Indices, from the cheapest to the dearest, of those for which no other is as cheap and as good, and better in one of the two.

    Several with the same cost and benefit are all on the front or all off it.
    """
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -benefits[i]))
    front: list[int] = []
    for i in order:
        last = front[-1] if front else None
        if last is None or benefits[i] > benefits[last] or (benefits[i] == benefits[last] and costs[i] == costs[last]):
            front.append(i)
    return front


def knee(costs: Sequence[float], benefits: Sequence[float]) -> int | None:
    """Index of the point of the front that lies farthest above the line between the front's ends: what comes cheaper loses much, what
    is dearer gains little. None where no point lies above it.

    Costs, which are positive, count by their logarithm, as in the plots; both axes are scaled to 0..1 between the front's ends. Das, "On
    characterizing the 'knee' of the Pareto curve based on normal-boundary intersection", Structural Optimization 18, 1999.
    """
    front = pareto_front(costs, benefits)
    if len(front) < 3:
        return None
    cheapest, dearest = front[0], front[-1]
    across, up = math.log(costs[dearest] / costs[cheapest]), benefits[dearest] - benefits[cheapest]
    if not across or not up:
        return None

    def above(i: int) -> float:
        return (benefits[i] - benefits[cheapest]) / up - math.log(costs[i] / costs[cheapest]) / across

    best = max(front, key=above)
    return best if above(best) > 1e-9 else None
