"""Two networks timed against each other for a method that searches."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from qexp.artifact import Artifact
from qexp.keys import plain
from qexp.measure.candidate import Candidate
from qexp.measure.timer import PairedTimer
from qexp.measure.timing import Taken
from qexp.types import Unsupported
from tests.measure.conftest import is_free, measuring_children
from tests.measure.fake_engines import Fake, Missing


class Given:
    """Windows of the candidate and of the reference, as they are told here instead of being timed."""

    @property
    def options(self) -> dict[str, Any]:
        return {"windows": 3}

    def take_turns(self, candidates: list[Candidate]) -> Taken:
        assert [candidate.artifact.key for candidate in candidates] == ["pruned", "whole"] and not is_free()
        assert all(
            candidate.ready_child().alive and (candidate.batch, candidate.threads) == (4, 1) for candidate in candidates
        )
        ours = [[1.0, 1.1, 9.0], [2.0, 2.0, 2.0], [1.0, 1.0, 1.0]]
        return Taken([ours, [[2.2, 2.2, 2.2], [6.0, 6.0, 6.0], [2.5, 2.5, 2.5]]])


@pytest.mark.integration
def test_it_is_the_median_of_ratios_of_pairs(make_artifact: Callable[..., Artifact]) -> None:
    timer = PairedTimer(Fake(), Given(), batch_size=4, threads=1, timeout_s=60, memory_mb=None)
    speedup = timer.speedup(make_artifact("pruned"), make_artifact("whole"))
    assert speedup == pytest.approx(2.5), "of 2.2 / 1.1, 6 / 2 and 2.5 / 1"
    assert is_free() and not measuring_children()
    options = plain(timer, "timer")
    assert options["engine"]["_target_"].endswith("fake_engines.Fake") and options["batch_size"] == 4
    assert options["turns"]["windows"] == 3 and options["place"]["host"] == socket.gethostname()


def test_an_engine_that_does_not_run_here_is_unsupported(make_artifact: Callable[..., Artifact]) -> None:
    with pytest.raises(Unsupported):
        PairedTimer(Missing(), Given(), 4, 1, 60, None).speedup(make_artifact("pruned"), make_artifact("whole"))
