"""A search tries what its space has, chooses by nothing of the test images, and ends the same whatever was killed on the way."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

import compress
from qexp.measure import base
from qexp.search.objectives import ON_VALIDATION, values_of
from qexp.search.space import Axis, Settings, Space
from qexp.search.study import Study, opened
from qexp.tracking.store import read_records
from qexp.types import Record, UserError
from tests.commands import FEW_WINDOWS, PRETEND, Run, fake, write_images
from tests.test_launchers import CHEAP, NETWORK

optuna = pytest.importorskip("optuna")

OBJECTIVES = {"val_top1": "maximize", "size_mb": "minimize"}
SAMPLERS = {
    "tpe": {"_target_": "optuna.samplers.TPESampler", "n_startup_trials": 4},
    "nsga2": {"_target_": "optuna.samplers.NSGAIISampler", "population_size": 4},
    "random": {"_target_": "optuna.samplers.RandomSampler"},
    "grid": {"_target_": "optuna.samplers.BruteForceSampler"},
}
COMMON = [
    "hydra/sweeper=optuna",
    "measure.accuracy.part=validation",
    *(f"+hydra.sweeper.objectives.{k}={v}" for k, v in OBJECTIVES.items()),
]
SEARCH = [
    "-m", *NETWORK, *fake("Says"), *CHEAP, "threads=1", "tracking=none", "outputs=outputs", *COMMON,
    "method=static,none", "bits=8,4", "+engine.answer=0,2", "method.observer=minmax,mse",
]  # fmt: skip


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
    axis = Axis.of(overrides(words)[0])
    assert (axis.key, axis.kind, axis.bounds) == ("a", kind, bounds)
    trials = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for _ in range(5):
        trial = trials.ask()
        text = axis.suggest(trial)
        assert text in bounds["choices"] if kind == "categorical" else bounds["low"] <= float(text) <= bounds["high"]
        assert kind == "categorical" or float(text) == pytest.approx(trial.params["a"], rel=1e-3) and len(text) < 10


@pytest.mark.parametrize("words", ["a=interval(2,1)", "a=tag(log,interval(0,1))", "a=tag(log,range(1,9,2))", "a=range(3,3)"])
def test_an_axis_with_nothing_on_it_is_refused(words: str) -> None:
    with pytest.raises(UserError, match="cannot be searched"):
        Axis.of(overrides(words)[0])


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


def searched(folder: Path, sampler: str, trials: int, kill: Callable[[int], bool] = lambda step: False) -> tuple[list[Settings], Any]:
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


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_that_is_killed_tries_the_same_settings(sampler: str, tmp_path: Path) -> None:
    whole, front = searched(tmp_path / "whole", sampler, 15)
    killed, same = searched(tmp_path / "killed", sampler, 15, kill=lambda step: step in (1, 2, 5, 6))
    assert killed == whole and same == front
    assert len({frozenset(settings.items()) for settings in whole}) == 15
    assert searched(tmp_path / "killed", sampler, 15) == ([], front), "it is finished"
    assert len(searched(tmp_path / "killed", sampler, 17)[0]) == 2


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_finite_space_is_tried_to_its_end_and_no_setting_twice(sampler: str, tmp_path: Path) -> None:
    found, front = searched(tmp_path, sampler, 100)
    everything = [{"method": "a", "method.bits": str(b), "method.observer": o} for b in range(2, 8) for o in "123"]
    everything += [{"method": "b", "method.bits": str(b)} for b in range(2, 8)]
    assert sorted(found, key=str) == sorted(everything, key=str)
    possible = [settings for settings in everything if settings["method.bits"] != "5"]
    expected = pareto([(settings, values(settings)) for settings in possible])
    assert sorted(front, key=str) == sorted(expected, key=str) and 1 < len(front) < len(possible)
    assert searched(tmp_path, sampler, 100) == ([], front)


def pareto(found: list[tuple[Any, list[float]]]) -> list[tuple[Any, list[float]]]:
    """Those that no other is at least as good as in both objectives, of which the first is maximised, and better in one."""

    def beats(a: list[float], b: list[float]) -> bool:
        return a[0] >= b[0] and a[1] <= b[1] and a != b

    return [(name, ours) for name, ours in found if not any(beats(theirs, ours) for _, theirs in found)]


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
        with pytest.raises(UserError, match="runs already"), opened(tmp_path, url, "name", OBJECTIVES, {"space": 1}, anew=False):
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["+hydra.sweeper.objectives.top1=maximize"], "use val_top1"),
        (["+hydra.sweeper.objectives.loss=minimize"], "use val_loss"),
        (["+hydra.sweeper.objectives.parity_agreement=maximize"], "test images"),
        (["measure.accuracy.part=test"], "needs measure.accuracy.part=validation, it is test"),
        (["measure.accuracy.part=both"], "leaves the test images alone"),
        (["measure.accuracy=null"], "needs measure.accuracy.part=validation"),
        (["+hydra.sweeper.objectives.latency_ms=maximize"], "look for the worst"),
        (["+hydra.sweeper.objectives.energy_mj=less"], "=less is unknown"),
        (["hydra.sweeper.trials=0"], "hydra.sweeper.trials=0 is out of range"),
        (["phase=compress"], "leave phase=all"),
        (["bits=8"], "nothing to search"),
        (["method.percentlie=1,2"], "did you mean 'method.percentile'"),
        (["method.percentile=interval(1,2)", "hydra/sweeper/sampler=grid"], "has no end"),
        (["hydra/sweeper/sampler=tpo"], "There is no hydra/sweeper/sampler=tpo: did you mean 'tpe'"),
        (["method=static,statik"], "There is no method=statik"),
    ],
)
def test_what_cannot_be_searched_is_told_before_anything_runs(run: Run, tmp_path: Path, words: list[str], message: str) -> None:
    accuracy = [word for word in COMMON if not any(word.startswith("measure.") and "accuracy" in other for other in words)]
    code, printed = run("-m", *PRETEND, *fake("Fake"), *FEW_WINDOWS, "tracking=none", *accuracy, "bits=8,4", *words)
    assert code == 1 and message in printed and "Traceback" not in printed
    assert not list((tmp_path / "outputs").glob("sweeps/*/*/record.json"))


def test_without_optuna_the_extra_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, printed = run("-m", *PRETEND, "tracking=none", *COMMON, "bits=8,4")
    assert code == 1 and "Optuna is not installed: pip install qexp[search]" in printed


def test_nothing_that_is_taken_on_test_images_can_be_searched_for(whole: Path) -> None:
    """All that accuracy gives of the validation images it gives of the test images too."""
    names = {name.removeprefix("val_") for each in found(whole)[1] for name in each.metrics if name.startswith("val_")}
    assert {"top1", "top1_low", "mcnemar_p"} <= names <= set(ON_VALIDATION)


def record(status: str = "finished", **more: Any) -> Record:
    return Record("compress", "key", "sweep", status, "why", "label", {}, {}, (), {}, "", "", **more)


def test_a_run_without_the_metric_is_no_candidate() -> None:
    assert values_of(record("unsupported"), OBJECTIVES) == ([], "why")
    noted = record(notes={"latency_ms": "simulated"})
    assert values_of(noted, {"latency_ms": "minimize"}) == ([], "it has no latency_ms: simulated")
    with pytest.raises(UserError, match="No run has the metric size_mb"):
        values_of(noted, {"size_mb": "minimize"})


def found(folder: Path) -> tuple[dict[str, Any], list[Record]]:
    """What the last command below `folder` found, and its rows."""
    *_, last = sorted((folder / "outputs" / "sweeps").iterdir())
    return json.loads((last / "search.json").read_text()), read_records(last)


def command(folder: Path, words: list[str]) -> None:
    os.chdir(folder)
    base.HOST_LOCK = folder / "measure.lock"  # no time is checked here
    sys.argv = ["compress.py", *words]
    with (folder / "log.txt").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    compress.main()


def started(folder: Path, *more: str) -> Any:
    context = multiprocessing.get_context("forkserver")
    methods = ["qexp.method.static", "qexp.method.none"]
    context.set_forkserver_preload(["compress", "qexp.jobs.compress", *methods, "pytorch_lightning", "optuna"])
    if not (folder / "pictures").exists():
        write_images(folder / "pictures")
    process = context.Process(target=command, args=(folder, [*SEARCH, *more]))
    process.start()
    return process


def ended(folder: Path, *more: str) -> str:
    process = started(folder, *more)
    process.join(600)
    log = (folder / "log.txt").read_text()
    assert process.exitcode == 0 and "Traceback" not in log and "Warning" not in log and "[I " not in log, log
    return log


def cells(records: list[Record]) -> list[tuple[Any, ...]]:
    return [(r.key, r.status, r.metrics.get("val_top1"), r.metrics.get("size_mb")) for r in records]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a search of all 12 settings ended: 8 of static, which this engine does not run in 4 bits, and 4 of none, which
    has no observer and is the same whatever `bits` says."""
    folder = tmp_path_factory.mktemp("whole")
    ended(folder, "hydra.sweeper.trials=20")
    return folder


def check_front(folder: Path) -> list[Any]:
    """The best that were told are those of the last command's records, which know nothing of the test images."""
    result, records = found(folder)
    assert not any("top1" in r.metrics for r in records)
    by_hand = pareto([(r.key, [r.metrics[name] for name in OBJECTIVES]) for r in records if r.status == "finished"])
    assert sorted((best["key"], best["values"]) for best in result["best"]) == sorted(by_hand)
    return by_hand


def test_what_is_unsupported_is_left_behind(whole: Path) -> None:
    result, records = found(whole)
    assert result["ended"] == {"finished": 6, "unsupported": 6, "failed": 0} and len(records) == 10
    assert [r.status for r in records].count("unsupported") == 4, "the other two are the same runs as others"
    assert len({r.key for r in records}) == 10
    front, log = check_front(whole), (whole / "log.txt").read_text()
    assert "search of 20 trials: maximize val_top1, minimize size_mb over method static, none × bits 8, 4" in log
    assert "Pareto set of 12 trials (6 finished, 6 unsupported)" in log and len(front) < 6
    sweep = sorted((whole / "outputs" / "sweeps").iterdir())[0]
    table = (sweep / "results.md").read_text()
    assert "Pareto set of 12 trials" in table and table.partition("All trials")[2].count("◆ |") == len(front)


def test_bits_are_chosen_between_accuracy_and_size(tmp_path: Path, run: Run) -> None:
    network = [
        "model=lenet5",
        "data=digits",
        "recipe.epochs=4",
        "recipe.batch_size=64",
        "recipe.optimizer.lr=0.05",
        "trainer=cpu",
        "threads=1",
    ]
    words = ["bits=8,2", "method.observer=minmax,mse", "method.first_last_bits=null", *CHEAP, *COMMON, "hydra.sweeper.trials=4"]
    code, printed = run("-m", *network, *words, "engine=eager", "engine@rivals=eager", "tracking=none")
    assert code == 0 and "Pareto set of 4 trials (4 finished)" in printed, printed
    front = check_front(tmp_path)
    assert len(front) >= 2, "8 bits are more accurate, 2 bits are smaller"


def test_a_finished_search_does_nothing_but_tell(whole: Path) -> None:
    before, rows = found(whole)
    log = ended(whole, "hydra.sweeper.trials=20")
    again, same = found(whole)
    assert again == before and sorted(cells(same)) == sorted(cells(rows)) and all(r.reused for r in same)
    assert "search of 20 trials, 12 of them done" in log and log.count("Pareto set of 12") == 2
    assert log.count("  finished in") == 6, "of the first command"


def test_a_search_killed_again_and_again_ends_as_one_that_was_not(whole: Path, tmp_path: Path) -> None:
    started_trials = itertools.count(1)
    for _ in range(3):
        victim, wanted = started(tmp_path, "hydra.sweeper.trials=20"), 2 * next(started_trials)
        while victim.is_alive() and len(list((tmp_path / "outputs").glob("cache/runs/*.json"))) < wanted:
            time.sleep(0.02)
        victim.kill()
        victim.join()
        assert victim.exitcode == -9, "it was quicker than this test"
    ended(tmp_path, "hydra.sweeper.trials=20")
    result, records = found(tmp_path)
    expected, rows = found(whole)
    assert [(b["settings"], b["values"]) for b in result["best"]] == [(b["settings"], b["values"]) for b in expected["best"]]
    assert result["ended"] == expected["ended"] and len(records) == 10 and any(r.reused for r in records)
    assert [r.label for r in records] == [r.label for r in rows], "in the same order"


def test_trials_run_side_by_side(whole: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "pictures")
    words = [*SEARCH, "hydra.sweeper.trials=4", "hydra/launcher=joblib", "hydra/sweeper/sampler=random"]
    surroundings = {**os.environ, "PYTHONPATH": str(Path(compress.__file__).parent), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, str(compress.__file__), *words]
    process = subprocess.run(line, cwd=tmp_path, env=surroundings, capture_output=True, text=True, timeout=600)
    log = process.stdout + process.stderr
    assert process.returncode == 0 and "Traceback" not in log and "Warning" not in log, log
    result, records = found(tmp_path)
    assert sum(result["ended"].values()) == len(records) == 4 and "#0 " in log and "#3 " in log

    def told(record: Record) -> tuple[Any, ...]:
        size = record.metrics.get("size_mb")  # the compressed text of a graph differs by some bytes from process to process
        return record.label, record.status, record.metrics.get("val_top1"), size and round(size, 4)

    assert {told(each) for each in records} <= {told(each) for each in found(whole)[1]}


@pytest.mark.parametrize("words", [["--help"], ["--cfg", "hydra", "experiment=search", "model=resnet8"]])
def test_what_runs_nothing_imports_no_optuna(words: list[str]) -> None:
    line = [sys.executable, "-X", "importtime", str(Path(compress.__file__)), *words]
    imported = subprocess.run(line, capture_output=True, text=True, check=True).stderr
    modules = {row.rpartition("|")[2].strip() for row in imported.splitlines()}
    assert "qexp.cli" in modules and not modules & {"optuna", "sqlalchemy", "torch", "qexp.search.search"}
