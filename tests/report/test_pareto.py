"""The front and its knee against brute force over all pairs and triples."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from qexp.report.pareto import knee, pareto_front

few = st.integers(1, 6)  # so that many are equal
POINTS = st.lists(st.tuples(few | st.floats(1e-3, 1e3), few | st.floats(0, 100)), max_size=25)


def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] >= other[1] and one != other


@given(POINTS)
def test_the_front_has_all_that_no_other_dominates_in_the_order_of_costs(points: list[tuple[float, float]]) -> None:
    costs, benefits = [p[0] for p in points], [p[1] for p in points]
    found = pareto_front(costs, benefits)
    assert set(found) == {i for i, p in enumerate(points) if not any(dominates(q, p) for q in points)}
    assert len(set(found)) == len(found) and [costs[i] for i in found] == sorted(costs[i] for i in found)


def distance(point: tuple[float, float], start: tuple[float, float], end: tuple[float, float]) -> float:
    """Return the signed distance from the line through start and end, positive above it.

    It is taken in the plane of log cost and benefit, both scaled to 0..1.
    """
    x = math.log(point[0] / start[0]) / math.log(end[0] / start[0])
    y = (point[1] - start[1]) / (end[1] - start[1])
    return (y - x) / math.sqrt(2)  # of the diagonal


@given(POINTS)
def test_the_knee_is_farthest_from_the_line_between_the_ends_of_the_front(points: list[tuple[float, float]]) -> None:
    costs, benefits = [p[0] for p in points], [p[1] for p in points]
    found = knee(costs, benefits)
    front = sorted({p for p in points if not any(dominates(q, p) for q in points)})
    far = [distance(p, front[0], front[-1]) for p in front] if len(front) > 2 else [0.0]
    if found is None:
        assert max(far) < 1e-6
    else:
        assert points[found] in front
        assert math.isclose(distance(points[found], front[0], front[-1]), max(far), abs_tol=1e-9)


def test_a_knee_by_hand() -> None:
    """From 1 to 100 ms: at 10 ms, the middle of the logarithms, 98 % of the gain; at 50 ms, 85 % of the way, 99 %."""
    assert knee([1, 10, 50, 100, 20], [0, 98, 99, 100, 50]) == 1
    assert knee([1, 10, 100], [0, 40, 100]) is None, "below the line"
    assert knee([1, 10], [0, 1]) is None
