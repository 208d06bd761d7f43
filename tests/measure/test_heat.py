"""A heat times rows in turns, drops those that have surely lost, and gives exact ratios."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qexp.jobs.heat import Heat, compared, timed
from qexp.measure.candidate import Candidate
from qexp.measure.timing import Taken
from tests.measure.conftest import is_free, measuring_children
from tests.measure.fake_engines import Fails, Fake

MakeCandidate = Callable[..., Candidate]


def test_ratios_are_those_to_the_fastest_and_a_drift_is_in_none() -> None:
    drift = np.random.default_rng(0).lognormal(0, 0.5, 21)
    found = compared({"a": list(3 * drift), "b": list(2 * drift), "c": list(10 * drift[:7])}, 0.0)
    assert found["b"] == (1.0, 1.0, 1.0)
    assert found["a"] == pytest.approx((1.5, 1.5, 1.5)) and found["c"] == pytest.approx((5.0, 5.0, 5.0))
    assert compared({"a": [3.0] * 7, "b": [2.0] * 7}, 0.5)["a"] == pytest.approx((1.5, 1.0, 2.25))


class Scripted:
    """Gives each candidate the time that its engine says, in every turn, and remembers who took part."""

    def __init__(self, trusted: bool = True):
        self.trusted, self.rounds = trusted, list[list[float]]()

    @property
    def options(self) -> dict[str, Any]:
        return {}

    def take_turns(self, candidates: list[Candidate]) -> Taken:
        times = [candidate.batch for candidate in candidates]
        self.rounds.append(times)
        return Taken([[[float(time)]] * 7 for time in times], 0, self.trusted)


def test_who_has_surely_lost_leaves_and_a_tie_goes_through_all_rounds(make_candidate: MakeCandidate) -> None:
    candidates = {name: make_candidate(Fake(), batch=ms) for name, ms in (("a", 2), ("b", 2), ("c", 3))}
    turns = Scripted()
    assert timed(candidates, Heat(turns, 12, 0.0)) == {"a": (1, 1, 1), "b": (1, 1, 1), "c": (1.5, 1.5, 1.5)}
    assert turns.rounds == [[2, 2, 3], [2, 2], [2, 2]] and is_free() and not measuring_children()


@pytest.mark.parametrize(("engine", "trusted"), [(Fake(), False), (Fails("leave", importing=True), True)])
def test_a_heat_that_was_disturbed_or_lost_a_row_has_no_result(
    engine: Any, trusted: bool, make_candidate: MakeCandidate
) -> None:
    candidates = {"a": make_candidate(engine), "b": make_candidate(Fake())}
    assert timed(candidates, Heat(Scripted(trusted), 12, 0.0)) is None
    assert is_free() and not measuring_children()
