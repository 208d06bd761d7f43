"""Finds the Pareto front of runs by a cost and a benefit, and the knee of the front."""

from __future__ import annotations

import math
from collections.abc import Sequence


def pareto_front(costs: Sequence[float], benefits: Sequence[float]) -> list[int]:
    """Find the points for which no other point is as cheap and as good, and better in one of the two.

    Points with the same cost and the same benefit are all on the front or all off it.

    Args:
        costs: Cost of each point, of which less is better.
        benefits: Benefit of each point, of which more is better.

    Returns:
        Indices of the points on the front, from the cheapest to the most expensive.
    """
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -benefits[i]))
    front: list[int] = []
    for i in order:
        last = front[-1] if front else None
        if last is None or benefits[i] > benefits[last] or (benefits[i] == benefits[last] and costs[i] == costs[last]):
            front.append(i)
    return front


def knee(costs: Sequence[float], benefits: Sequence[float]) -> int | None:
    """Find the point of the front that lies farthest above the straight line between the ends of the front.

    Cheaper points lose much of the benefit, and more expensive ones gain little. Costs count by their logarithm, as in
    the plots, and both axes are scaled to 0..1 between the ends of the front. See Das, "On characterizing the 'knee'
    of the Pareto curve based on normal-boundary intersection", Structural Optimization 18, 1999.

    Args:
        costs: Cost of each point, a positive number.
        benefits: Benefit of each point.

    Returns:
        Index of the knee, or None if no point lies above the line.
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
