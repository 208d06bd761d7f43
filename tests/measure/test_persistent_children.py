"""What runs are compared with keeps its child from run to run, and still never answers for another network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qexp.artifact import Artifact
from qexp.launch import Child, ChildFailed
from qexp.measure.candidate import Candidate
from qexp.measure.children import Limits, new_child
from qexp.measure.images import EvaluationSet
from tests.measure.conftest import measuring_children
from tests.measure.fake_engines import Fails, Fake, Scores

MakeCandidate = Callable[..., Candidate]


def test_the_next_run_finds_the_child_of_the_last(make_candidate: MakeCandidate) -> None:
    first = make_candidate(Fake(), persistent=True)
    assert first.window(3, 0)
    pid = first.ready_child().process.pid
    first.close()
    assert measuring_children() == {pid}
    second = make_candidate(Fake(), persistent=True)
    assert second.window(3, 0) and second.ready_child().process.pid == pid


def test_another_engine_or_other_options_have_a_child_of_their_own(make_candidate: MakeCandidate) -> None:
    candidates = [make_candidate(engine, persistent=True) for engine in (Scores(), Scores(sign=-1))]
    assert len({candidate.ready_child().process.pid for candidate in candidates}) == 2


def test_no_more_than_two_stand(make_candidate: MakeCandidate) -> None:
    pids = [
        make_candidate(engine, persistent=True).ready_child().process.pid
        for engine in (Scores(), Scores(sign=-1), Fake())
    ]
    assert measuring_children() == {*pids[1:]}


def test_a_measured_subject_never_has_a_standing_child(make_candidate: MakeCandidate) -> None:
    persistent, fresh = make_candidate(Fake(), persistent=True), make_candidate(Fake())
    assert persistent.ready_child().process.pid != fresh.ready_child().process.pid


def test_two_networks_in_one_child_answer_for_themselves(
    make_candidate: MakeCandidate, make_artifact: Callable[..., Artifact],
    tests_of: Callable[[Artifact], EvaluationSet],
    colours: np.ndarray, weights: list[np.ndarray], tmp_path: Path,
) -> None:  # fmt: skip
    artifacts = [make_artifact(f"of{i}", w) for i, w in enumerate(weights)]
    one = make_candidate(Scores(), artifacts[0], persistent=True)
    other = one.beside(artifacts[1])
    assert one.ready_child() is other.ready_child()
    tests = tests_of(artifacts[0])
    for turn, (candidate, own) in enumerate(((one, weights[0]), (other, weights[1]), (one, weights[0]))):
        logits, _ = candidate.logits(
            tests, 10, tmp_path / f"turn{turn}"
        )  # a cache of its own: nothing is read from disk
        np.testing.assert_allclose(logits, colours @ own, atol=1e-5)


def test_a_standing_child_that_died_is_replaced(make_candidate: MakeCandidate) -> None:
    candidate = make_candidate(Fake(), persistent=True)
    candidate.start()
    candidate.ready_child().process.kill()
    with pytest.raises(ChildFailed, match="SIGKILL"):
        candidate.window(1, 0)
    candidate.close()
    assert make_candidate(Fake(), persistent=True).window(3, 0)


def test_one_that_failed_to_load_is_asked_again(make_candidate: MakeCandidate) -> None:
    with pytest.raises(ChildFailed, match="wrong colour"):
        make_candidate(Fails("error"), persistent=True).window(1, 0)
    with pytest.raises(ChildFailed, match="wrong colour"):
        make_candidate(Fails("error"), persistent=True).window(1, 0)


def test_a_child_whose_question_was_interrupted_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    child = new_child(Fake(), 1, Limits(60, None))

    def interrupted(self: Child, command: str) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(Child, "_read_line", interrupted)
    with pytest.raises(KeyboardInterrupt):
        child.ask("ready")
    assert not child.alive


def test_a_standing_child_belongs_to_the_folder_that_its_paths_start_from(
    make_candidate: MakeCandidate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = make_candidate(Fake(), persistent=True).ready_child().process.pid
    monkeypatch.chdir(tmp_path)
    assert make_candidate(Fake(), persistent=True).ready_child().process.pid != here
