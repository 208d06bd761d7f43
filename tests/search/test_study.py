"""A search proposes options that belong to the choice, and none of them twice.

It proposes the same whatever was killed on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from qexp.records import Record
from qexp.search.objectives import values_of
from qexp.search.space import Dimension, Settings, Space
from qexp.search.study import Study, opened
from qexp.types import UserError
from tests.search.fronts import OBJECTIVES, pareto
from tests.tiers import more

optuna = pytest.importorskip("optuna")

SAMPLERS = {
    "tpe": {"_target_": "optuna.samplers.TPESampler", "n_startup_trials": 4},
    "nsga2": {"_target_": "optuna.samplers.NSGAIISampler", "population_size": 4},
    "random": {"_target_": "optuna.samplers.RandomSampler"},
    "grid": {"_target_": "optuna.samplers.BruteForceSampler"},
}


def overrides(*words: str) -> list[Any]:
    return OverridesParser.create().parse_overrides(list(words))


@pytest.mark.parametrize(
    ("words", "kind", "bounds"),
    [
        ("a=8,4,null,8", "categorical", {"choices": ["8", "4", "null"]}),
        ("a=int(interval(2,5))", "int", {"low": 2, "high": 5, "log": False}),
        ("a=range(3,9)", "int", {"low": 3, "high": 8, "log": False, "step": 1}),
        ("a=range(9,2,-3)", "int", {"low": 3, "high": 9, "log": False, "step": 3}),
        ("a=tag(log,int(interval(1,64)))", "int", {"low": 1, "high": 64, "log": True}),
        ("a=tag(log,interval(0.001,1))", "float", {"low": 0.001, "high": 1.0, "log": True}),
        ("a=range(0.5,2,0.5)", "float", {"low": 0.5, "high": 1.5, "log": False, "step": 0.5}),
    ],
)
def test_axes_in_hydras_words(words: str, kind: str, bounds: dict[str, Any]) -> None:
    dimension = Dimension.of(overrides(words)[0])
    assert (dimension.key, dimension.kind, dimension.bounds) == ("a", kind, bounds)
    trials = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for _ in range(5):
        trial = trials.ask()
        text = dimension.suggest(trial)
        assert text in bounds["choices"] if kind == "categorical" else bounds["low"] <= float(text) <= bounds["high"]
        assert kind == "categorical" or float(text) == pytest.approx(trial.params["a"], rel=1e-3) and len(text) < 10


@pytest.mark.parametrize(
    "words", ["a=interval(2,1)", "a=tag(log,interval(0,1))", "a=tag(log,range(1,9,2))", "a=range(3,3)"]
)
def test_an_axis_with_nothing_on_it_is_refused(words: str) -> None:
    with pytest.raises(UserError, match="cannot be searched"):
        Dimension.of(overrides(words)[0])


def compose(words: list[str]) -> DictConfig:
    return OmegaConf.create({"method": {"bits": 8} if "method=b" in words else {"bits": 8, "observer": 1}})


def space(*words: str) -> Space:
    given = words or ("method=a,b", "method.bits=range(2,8)", "method.observer=1,2,3", "seed=7")
    return Space(overrides(*given), compose, lambda key: key == "method")


def test_options_that_the_choice_does_not_have_are_left_out() -> None:
    made = space()
    trial = optuna.trial.FixedTrial({"method": "b", "method.bits": 3, "method.observer": "1"})
    assert made.overrides(made.settings(trial)) == ["seed=7", "method=b", "method.bits=3"]
    with pytest.raises(UserError, match="method.obsever is no option. did you mean 'method.observer'"):
        space("method=a,b", "method.obsever=1,2")


def values(settings: Settings) -> list[float]:
    """Two objectives that contradict each other."""
    bits = int(settings["method.bits"])
    return [bits + int(settings.get("method.observer", 0)) * 0.1, bits * (1.0 if settings["method"] == "a" else 1.5)]


def tell(study: Study, proposal: Any) -> None:
    unsupported = proposal.settings["method.bits"] == "5"
    study.tell(proposal, [] if unsupported else values(proposal.settings), "no five bits" * unsupported)


def searched(
    folder: Path, sampler: str, trials: int, kill: Callable[[int], bool] = lambda step: False
) -> tuple[list[Settings], Any]:
    """Settings in the order they ended, and the front; at each step that is to be killed, a new process in effect."""
    url, found, step = f"sqlite:///{folder}/searches.db", [], 0
    while True:
        with opened(folder, url, "name", OBJECTIVES, {"space": 1}, anew=False) as kept:
            study = Study(kept, space(), OmegaConf.create(SAMPLERS[sampler]), 0, retry=True)
            while batch := study.propose(min(2, trials - len(study.ended))):
                step += 1
                for place, proposal in enumerate(batch):
                    if kill(step) and place == step % 2:
                        break
                    tell(study, proposal)
                    found.append(proposal.settings)
                if kill(step):
                    break
            else:
                return found, [(best.settings, best.values) for best in study.best()]


@pytest.mark.thorough
@pytest.mark.integration
@pytest.mark.parametrize("sampler", ["tpe", *more("nsga2", "random", "grid")])
def test_a_search_that_is_killed_tries_the_same_settings(sampler: str, tmp_path: Path) -> None:
    whole, front = searched(tmp_path / "whole", sampler, 15)
    killed, same = searched(tmp_path / "killed", sampler, 15, kill=lambda step: step in (1, 2, 5, 6))
    assert killed == whole and same == front
    assert len({frozenset(settings.items()) for settings in whole}) == 15
    assert searched(tmp_path / "killed", sampler, 15) == ([], front), "it is finished"
    assert len(searched(tmp_path / "killed", sampler, 17)[0]) == 2


@pytest.mark.integration
@pytest.mark.parametrize("sampler", ["grid", *more("tpe", "nsga2", "random")])
def test_a_finite_space_is_tried_to_its_end_and_no_setting_twice(sampler: str, tmp_path: Path) -> None:
    found, front = searched(tmp_path, sampler, 100)
    everything = [{"method": "a", "method.bits": str(b), "method.observer": o} for b in range(2, 8) for o in "123"]
    everything += [{"method": "b", "method.bits": str(b)} for b in range(2, 8)]
    assert sorted(found, key=str) == sorted(everything, key=str)
    possible = [settings for settings in everything if settings["method.bits"] != "5"]
    expected = pareto([(settings, values(settings)) for settings in possible])
    assert sorted(front, key=str) == sorted(expected, key=str) and 1 < len(front) < len(possible)
    assert searched(tmp_path, sampler, 100) == ([], front)


@pytest.mark.integration
def test_failures_are_tried_again_unless_told_otherwise(tmp_path: Path) -> None:
    def numbers(retry: bool, failed: bool) -> int:
        with opened(tmp_path, f"sqlite:///{tmp_path}/searches.db", "name", OBJECTIVES, {}, anew=False) as kept:
            study, count = Study(kept, space(), OmegaConf.create(SAMPLERS["random"]), 0, retry), 0
            while batch := study.propose(min(1, 3 - len(study.ended))):
                study.tell(batch[0], [] if failed else values(batch[0].settings), "broken" * failed, failed)
                count += 1
            assert len(study.ended) == 3 and study.count("FAIL") == (3 if failed or not retry else 0)
            return count

    assert [numbers(True, True), numbers(False, True), numbers(True, False), numbers(True, False)] == [3, 0, 3, 0]


def test_a_study_belongs_to_one_process_and_one_definition(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/searches.db"
    with opened(tmp_path, url, "name", OBJECTIVES, {"space": 1, "seed": 0}, anew=False):  # noqa: SIM117
        with (
            pytest.raises(UserError, match="runs already"),
            opened(tmp_path, url, "name", OBJECTIVES, {"space": 1}, anew=False),
        ):
            pass
    with (
        pytest.raises(UserError, match="had other space. Give another"),
        opened(tmp_path, url, "name", OBJECTIVES, {"space": 2, "seed": 0}, False),
    ):
        pass
    with opened(tmp_path, url, "name", OBJECTIVES, {"space": 2, "seed": 0}, anew=True) as study:
        assert study.user_attrs["definition"]["space"] == 2
    (tmp_path / "broken.db").write_text("no database at all" * 100)
    with (
        pytest.raises(UserError, match="cannot be opened"),
        opened(tmp_path, f"sqlite:///{tmp_path}/broken.db", "n", OBJECTIVES, {}, False),
    ):
        pass


def record(status: str = "finished", **more: Any) -> Record:
    return Record("compress", "key", "sweep", status, "why", "label", {}, {}, (), {}, "", "", **more)


def test_a_run_without_the_metric_is_no_candidate() -> None:
    assert values_of(record("unsupported"), OBJECTIVES) == ([], "why")
    noted = record(notes={"latency_ms": "simulated"})
    assert values_of(noted, {"latency_ms": "minimize"}) == ([], "it has no latency_ms: simulated")
    with pytest.raises(UserError, match="No run has the metric size_mb"):
        values_of(noted, {"size_mb": "minimize"})
