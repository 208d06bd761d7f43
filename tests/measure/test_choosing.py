"""A job takes the fastest engine that runs here, survives and tells the truth.

So does the choice of the fp32 engine that it is compared with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from qexp.artifact import Artifact
from qexp.engine.base import Engine
from qexp.jobs.comparison import measure
from qexp.jobs.engines import accepted_by, engines_of
from qexp.jobs.fp32 import fastest_known
from qexp.launch import ChildFailed
from qexp.measure.base import ParityError, ranking
from qexp.measure.candidate import Candidate
from qexp.measure.timing import Taken
from qexp.types import Unsupported, UserError
from tests import configured
from tests.measure.conftest import QUANTIZED, is_free, measuring_children
from tests.measure.fake_engines import Fails, Fake, Logs, Missing, Says, Takes, TakesToo

TRIAL: dict[str, Any] = {
    "windows": 3,
    "calls": 3,
    "window_s": 0.01,
    "warmup_calls": 3,
    "warmup_s": 0.01,
    "budget_s": 60,
    "resolution": 0.0,
}
QUICK = configured.measure("latency", **TRIAL)
MakeCandidate = Callable[..., Candidate]


@pytest.fixture(autouse=True)
def no_child_is_left_over() -> Iterator[None]:
    assert not measuring_children()
    yield


class Counts:
    """Times nobody: of two candidates the second is the faster; `timed` counts how often it was asked."""

    timed = 0

    @property
    def options(self) -> dict[str, Any]:
        return {}

    def take_turns(self, candidates: list[Candidate]) -> Taken:
        self.timed += 1
        return Taken([[[10.0 - place] * 3] * 2 for place in range(len(candidates))])


class Gives:
    """Hands out an exception instead of times."""

    @property
    def options(self) -> dict[str, Any]:
        return {}

    def take_turns(self, candidates: list[Candidate]) -> Taken:
        raise KeyboardInterrupt


def accept(candidate: Candidate) -> None:
    """Every candidate computes what it should."""


def test_candidates_are_ranked_by_their_time_and_the_fastest_keeps_its_child(make_candidate: MakeCandidate) -> None:
    candidates = {
        "slow": make_candidate(TakesToo(6)),
        "quick": make_candidate(Takes(1)),
        "middle": make_candidate(Takes(3)),
    }
    notes: dict[str, str] = {}
    ranked = ranking(candidates, QUICK, notes)
    assert list(ranked) == ["quick", "middle", "slow"] and notes == {}
    assert ranked == {"quick": 1, "middle": 3, "slow": 6}
    assert measuring_children() == {candidates["quick"].ready_child().process.pid}


def test_a_disturbed_trial_names_no_fastest_engine_for_good(make_candidate: MakeCandidate, tmp_path: Path) -> None:
    class Disturbed(Counts):
        def take_turns(self, candidates: list[Candidate]) -> Taken:
            return replace(super().take_turns(candidates), disturbed=2, trusted=False)

    candidates = {name: make_candidate(Fake()) for name in ("a", "b")}
    notes: dict[str, str] = {}
    assert [*ranking(candidates, Disturbed(), notes)] == ["b", "a"]  # something has to be chosen
    assert notes == {"trial": "the engines were compared while other processes used the cores"}
    trial = Disturbed()
    for times in (1, 2):  # nothing was stored
        assert fastest_known(candidates, trial, tmp_path, accept) is None and trial.timed == times
    assert fastest_known(candidates, Counts(), tmp_path, accept) is candidates["b"]


def test_a_disturbed_window_does_not_change_the_ranking(make_candidate: MakeCandidate) -> None:
    class Disturbed:
        def take_turns(self, candidates: list[Candidate]) -> Taken:
            return Taken([[[2.0, 2.0, 90.0], [2.0], [900.0]], [[3.0], [3.0, 3.0, 0.1], [3.0]]])

    candidates = {name: make_candidate(Fake()) for name in ("a", "b")}
    assert ranking(candidates, Disturbed(), {}) == {"a": 2, "b": 3}


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (Fails("segfault"), "crashed with SIGSEGV"),
        (Fails("refuse"), "out of memory: an allocation was refused"),
        (Fails("hang"), "hung: no answer to 'start' within 8 s (measure.timeout_s)"),
        (Fails("error"), "ValueError: the tensor is of the wrong colour"),
        (Fails("leave", importing=True), "ended with exit code 3: no licence found"),
    ],
    ids=["crash", "memory", "hang", "error", "import"],
)
def test_a_candidate_that_does_not_survive_is_left_out_with_its_reason(
    engine: Engine, reason: str, make_candidate: MakeCandidate
) -> None:
    victim = make_candidate(engine, **({"timeout_s": 8} if "hung" in reason else {}))
    candidates = {"victim": victim, "slow": make_candidate(Takes(3)), "quick": make_candidate(Takes(1))}
    notes: dict[str, str] = {}
    assert list(ranking(candidates, QUICK, notes)) == ["quick", "slow"]
    assert notes == {"candidate victim": f"left out: it {reason}"}
    assert measuring_children() == {candidates["quick"].ready_child().process.pid}


def test_if_none_survives_the_reason_comes_through_and_nothing_is_left(make_candidate: MakeCandidate) -> None:
    notes: dict[str, str] = {}
    with pytest.raises(ChildFailed, match="wrong colour"):
        ranking({"first": make_candidate(Fails("segfault")), "last": make_candidate(Fails("error"))}, QUICK, notes)
    assert set(notes) == {"candidate first", "candidate last"}
    assert is_free() and not measuring_children()


def test_an_interrupted_trial_leaves_nothing(make_candidate: MakeCandidate) -> None:
    with pytest.raises(KeyboardInterrupt):
        ranking({name: make_candidate(Fake()) for name in ("a", "b")}, Gives(), {})
    assert is_free() and not measuring_children()


def test_no_candidate_is_loaded_while_another_imports(make_candidate: MakeCandidate, tmp_path: Path) -> None:
    """The winner's load and first call, which are kept, are its own."""
    log = tmp_path / "log"
    ranking({str(ms): make_candidate(Logs(str(log), ms)) for ms in (0, 800)}, Counts(), {})
    assert log.read_text().split() == ["imported", "imported", "loaded", "loaded"]


def refuse(engine: Engine) -> Any:
    engine.check_machine()
    if engine.name == "takes":
        raise Unsupported("takes has no kernels for it")
    if engine.name == "says":
        raise UserError("the graph cannot be translated")
    return engine.name


def test_engines_that_are_missing_or_refuse_are_left_out_with_their_reasons() -> None:
    engines = {"one": Takes(1), "missing": Missing(), "two": Fake(), "three": Says(1), "four": TakesToo(1)}
    notes: dict[str, str] = {}
    assert accepted_by(engines, refuse, notes) == {"two": "fake", "four": "takes_too"}
    assert notes == {
        "candidate one": "left out: takes has no kernels for it",
        "candidate missing": "left out: missing needs no_such_library, which is not installed: "
        "pip install no_such_library",
        "candidate three": "left out: the graph cannot be translated",
    }


@pytest.mark.parametrize(
    ("engines", "error", "reason"),
    [
        ({"a": Takes(1), "b": Says(1), "c": Missing()}, Unsupported, "no kernels"),
        ({"b": Says(1), "a": Takes(1)}, UserError, "cannot be translated"),
        ({"c": Missing(), "a": Takes(1)}, Unsupported, "not installed"),
    ],
)
def test_if_all_refuse_the_first_reason_counts(engines: dict[str, Engine], error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        accepted_by(engines, refuse, {})


def test_whatever_else_an_engine_raises_leaves_it_out_too() -> None:
    def breaking(engine: Engine) -> Any:
        if engine.name == "fake":
            raise ZeroDivisionError("there is nothing\nto divide by")
        return engine.name

    notes: dict[str, str] = {}
    assert accepted_by({"a": Fake(), "b": Takes(1)}, breaking, notes) == {"b": "takes"}
    assert notes == {"candidate a": "left out: ZeroDivisionError: there is nothing"}


def test_what_is_no_refusal_comes_through() -> None:
    def broken(engine: Engine) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        accepted_by({"a": Fake(), "b": Fake()}, broken, {})


def target(name: str, **options: Any) -> dict[str, Any]:
    return {"_target_": f"tests.measure.fake_engines.{name}", **options}


def test_engines_of_a_choice_and_of_its_candidates() -> None:
    assert {name: type(engine) for name, engine in engines_of(OmegaConf.create(target("Says", answer=3))).items()} == {
        "says": Says
    }
    several = {"candidates": {"a": target("Takes", ms=4), "left_out": None, "b": target("Fake")}, "trial": {}}
    engines = engines_of(OmegaConf.create(several))
    assert list(engines) == ["a", "b"] and vars(engines["a"])["ms"] == 4


def test_what_an_experiment_says_of_candidates_is_not_for_an_engine_that_is_named() -> None:
    named = OmegaConf.create({**target("Says", answer=3), "candidates": {"onnxruntime": None}, "accept_points": 1})
    OmegaConf.set_struct(named, True)
    assert vars(engines_of(named)["says"]) == {"answer": 3}
    assert [*named] == ["_target_", "answer"]  # as records have it


def test_candidates_that_are_all_null_are_a_clear_error() -> None:
    with pytest.raises(UserError, match=r"Every candidate is null \(onnxruntime, openvino\)"):
        engines_of(OmegaConf.create({"candidates": {"onnxruntime": None, "openvino": None}}))


@pytest.fixture
def fp32_engines(
    make_artifact: Callable[..., Artifact], make_candidate: MakeCandidate
) -> Callable[..., dict[str, Candidate]]:
    """Two engines on one artifact, as each job of a sweep makes them anew; in `Counts` the second wins."""
    artifact = make_artifact("fp32")

    def made(**changes: Any) -> dict[str, Candidate]:
        return {
            "takes": make_candidate(Takes(1), artifact, **changes),
            "fake": make_candidate(Fake(), artifact, **changes),
        }

    return made


def test_the_fastest_best_fp32_is_timed_once_for_all_jobs(
    fp32_engines: Callable[..., dict[str, Candidate]], tmp_path: Path
) -> None:
    trial = Counts()
    for _ in range(3):
        candidates = fp32_engines()
        assert fastest_known(candidates, trial, tmp_path, accept) is candidates["fake"]
        assert trial.timed == 1 and not measuring_children()
    (file,) = (tmp_path / "fastest").iterdir()
    assert json.loads(file.read_text()) == {"fake": 9, "takes": 10}


def test_another_batch_size_thread_count_or_file_is_timed_again(
    fp32_engines: Callable[..., dict[str, Candidate]],
    make_artifact: Callable[..., Artifact],
    make_candidate: MakeCandidate,
    tmp_path: Path,
) -> None:
    trial = Counts()
    other = make_artifact("other")
    threads = fp32_engines()
    for candidate in threads.values():
        candidate.threads = 2
    cases = [
        fp32_engines(),
        fp32_engines(batch=8),
        threads,
        {name: make_candidate(s.engine, other) for name, s in fp32_engines().items()},
    ]
    for count, candidates in enumerate([*cases, *cases], 1):
        assert fastest_known(candidates, trial, tmp_path, accept) is candidates["fake"]
        assert trial.timed == min(count, len(cases))


def test_an_engine_that_computes_something_else_is_no_best_fp32(
    fp32_engines: Callable[..., dict[str, Candidate]], tmp_path: Path
) -> None:
    def judge(candidate: Candidate) -> None:
        if candidate.engine.name in refused:
            raise ParityError("it computes something else")

    refused, candidates = ["fake"], fp32_engines()
    assert fastest_known(candidates, Counts(), tmp_path / "one", judge) is candidates["takes"]
    refused.append("takes")
    with pytest.raises(ParityError, match="something else"):
        fastest_known(candidates, Counts(), tmp_path / "none", judge)


def test_one_best_fp32_alone_is_not_timed(make_candidate: MakeCandidate, tmp_path: Path) -> None:
    candidate = make_candidate(Fails("leave"))
    assert fastest_known({"only": candidate}, Gives(), tmp_path, accept) is candidate
    assert not list(tmp_path.glob("fastest"))


def test_the_measured_times_decide_which_best_fp32_is_the_fastest(
    make_candidate: MakeCandidate, tmp_path: Path
) -> None:
    candidates = {
        "slow": make_candidate(Takes(4)),
        "crashes": make_candidate(Fails("leave")),
        "quick": make_candidate(TakesToo(1)),
    }
    assert fastest_known(candidates, QUICK, tmp_path, accept) is candidates["quick"]


@pytest.fixture
def config(tmp_path: Path) -> DictConfig:
    """A job that compares all images and times nothing but its candidates."""
    trial = {"_target_": "qexp.measure.latency.Latency", **TRIAL, "most_round_trip_ns": None, "watch": False}
    parity = {
        "_target_": "qexp.measure.parity.Parity",
        "images": 50,
        "least_agreement": 0.99,
        "decided": 4,
        "most_error": 0.01,
        "most_error_half": 0.1,
        "most_rounding": 2,
        "batch_size": 16,
    }
    measures = {"parity": parity, "accuracy": None, "timeout_s": 60, "memory_mb": None}
    return OmegaConf.create({
        "outputs": str(tmp_path), "engine": {"trial": trial, "candidates": {}}, "fp32_engines": target("Fake"),
        "measure": measures,
        "picture": None,
    })  # fmt: skip


@pytest.fixture
def on_graph(make_artifact: Callable[..., Artifact], make_candidate: MakeCandidate) -> Callable[[Engine], Candidate]:
    """A candidate on one quantised graph; what `Fake` says of it is true if `Fake` is the baseline's engine."""
    artifact = make_artifact("graph", layers=QUANTIZED)
    return lambda engine: make_candidate(engine, artifact)


def test_a_candidate_that_disagrees_with_its_graph_is_passed_over(
    config: DictConfig, on_graph: Callable[[Engine], Candidate], make_candidate: MakeCandidate, tests_of: Any
) -> None:
    candidates = {"liar": on_graph(Says(3)), "slow": on_graph(Takes(4)), "honest": on_graph(TakesToo(2))}
    notes = {"candidate missing": "left out: it is not installed"}
    outcome = measure(config, candidates, make_candidate(Fake()), {}, tests_of(candidates["liar"].artifact), notes)
    assert outcome.candidate is candidates["honest"]
    found = {m.name: m.value for m in outcome.measurements}
    assert list(found) == [
        "parity_agreement",
        "parity_max_error",
        "candidate_liar_ms",
        "candidate_honest_ms",
        "candidate_slow_ms",
    ]
    assert found["parity_agreement"] == 1 and found["candidate_honest_ms"] == 2
    assert set(outcome.notes) == {"candidate missing", "candidate liar"}
    assert outcome.notes["candidate liar"].startswith("left out: says does not compute what the graph says")
    assert not measuring_children()


def test_if_all_disagree_with_their_graph_that_is_the_end(
    config: DictConfig, on_graph: Callable[[Engine], Candidate], make_candidate: MakeCandidate, tests_of: Any
) -> None:
    candidates = {"liar": on_graph(Says(3)), "other": on_graph(Says(4))}
    notes: dict[str, str] = {}
    with pytest.raises(ParityError, match="says does not compute what the graph says"):
        measure(config, candidates, make_candidate(Fake()), {}, tests_of(candidates["liar"].artifact), notes)
    assert len(notes) == 1 and not measuring_children()


def test_one_engine_alone_is_measured_without_a_trial_beside_one_best_fp32(
    config: DictConfig, on_graph: Callable[[Engine], Candidate], make_candidate: MakeCandidate, tests_of: Any
) -> None:
    config.engine = target("TakesToo", ms=2)
    config.measure = {
        "latency": {"_target_": "qexp.measure.latency.Latency", **TRIAL, "most_round_trip_ns": None, "watch": False},
        "timeout_s": 60,
        "memory_mb": None,
    }
    candidate, best_fp32 = on_graph(TakesToo(2)), make_candidate(Takes(6))
    outcome = measure(
        config, {"takes_too": candidate}, make_candidate(Fake()), {"takes": best_fp32}, tests_of(candidate.artifact), {}
    )
    found = {m.name: m.value for m in outcome.measurements}
    assert found["speedup_vs_best_fp32"] == 3
    assert not [name for name in found if name.startswith(("candidate", "parity"))]
    assert outcome.notes == {"speedup_vs_best_fp32": "the fastest fp32 engine here was takes"}
