"""A search through the command tries what its space has, and chooses by nothing of the test images.

Killed and started again, it ends as if nothing had happened.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import compress
from qexp.metrics import METRICS
from qexp.records import Record
from qexp.tracking.store import read_records
from tests.commands import CHEAP, FEW_WINDOWS, PRETEND, TRAINED, RunCommand, fake, write_images
from tests.processes import own_lock, started
from tests.search.fronts import OBJECTIVES, pareto

pytest.importorskip("optuna")
pytestmark = pytest.mark.integration

COMMON = [
    "hydra/sweeper=optuna",
    "measure.accuracy.part=validation",
    *(f"+hydra.sweeper.objectives.{k}={v}" for k, v in OBJECTIVES.items()),
]
SEARCH = [
    "-m", *TRAINED, *fake("Says"), *CHEAP, "threads=1", "tracking=none", "outputs=outputs", *COMMON,
    "method=static,none", "bits=8,4", "+engine.answer=0,2", "method.observer=minmax,mse",
]  # fmt: skip


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
def test_what_cannot_be_searched_is_told_before_anything_runs(
    run: RunCommand, tmp_path: Path, words: list[str], message: str
) -> None:
    accuracy = [
        word for word in COMMON if not any(word.startswith("measure.") and "accuracy" in other for other in words)
    ]
    code, printed = run("-m", *PRETEND, *fake("Fake"), *FEW_WINDOWS, "tracking=none", *accuracy, "bits=8,4", *words)
    assert code == 1 and message in printed and "Traceback" not in printed
    assert not list((tmp_path / "outputs").glob("sweeps/*/*/record.json"))


def test_without_optuna_the_extra_is_named(run: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, printed = run("-m", *PRETEND, "tracking=none", *COMMON, "bits=8,4")
    assert code == 1 and "Optuna is not installed: pip install qexp[search]" in printed


def found(folder: Path) -> tuple[dict[str, Any], list[Record]]:
    """What the last command below `folder` found, and its rows."""
    *_, last = sorted((folder / "outputs" / "sweeps").iterdir())
    return json.loads((last / "search.json").read_text()), read_records(last)


def ended(folder: Path, *more: str) -> str:
    process = started(folder, [*SEARCH, *more])
    process.join(600)
    log = (folder / "log.txt").read_text()
    assert process.exitcode == 0 and "Traceback" not in log and "Warning" not in log and "[I " not in log, log
    return log


@pytest.mark.thorough
def test_nothing_that_is_taken_on_test_images_can_be_searched_for(whole: Path) -> None:
    """All that accuracy gives of the validation images it gives of the test images too."""
    names = {name.removeprefix("val_") for each in found(whole)[1] for name in each.metrics if name.startswith("val_")}
    assert {"top1", "top1_low", "mcnemar_p"} <= names and all(METRICS[name].on_test for name in names)


def cells(records: list[Record]) -> list[tuple[Any, ...]]:
    return [(r.key, r.status, r.metrics.get("val_top1"), r.metrics.get("size_mb")) for r in records]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a search of all 12 settings ended.

    8 are of static, which this engine does not run in 4 bits, and 4 of none, which has no observer and is the same
    whatever `bits` says.
    """
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


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_bits_are_chosen_between_accuracy_and_size(tmp_path: Path, run: RunCommand) -> None:
    network = [
        "model=lenet5",
        "data=digits",
        "recipe.epochs=4",
        "recipe.batch_size=64",
        "recipe.optimizer.lr=0.05",
        "trainer=cpu",
    ]
    words = ["bits=8,2", "method.first_last_bits=null", *CHEAP, *COMMON, "hydra.sweeper.trials=2", "threads=1"]
    code, printed = run("-m", *network, *words, "engine=eager", "engine@fp32_engines=eager", "tracking=none")
    assert code == 0 and "Pareto set of 2 trials (2 finished)" in printed, printed
    assert len(check_front(tmp_path)) == 2, "8 bits are more accurate, 2 bits are smaller"


@pytest.mark.thorough
def test_a_finished_search_does_nothing_but_tell(whole: Path) -> None:
    before, rows = found(whole)
    log = ended(whole, "hydra.sweeper.trials=20")
    again, same = found(whole)
    assert again == before and sorted(cells(same)) == sorted(cells(rows)) and all(r.reused for r in same)
    assert "search of 20 trials, 12 of them done" in log and log.count("Pareto set of 12") == 2
    assert log.count("  finished in") == 6, "of the first command"


@pytest.mark.thorough
def test_a_search_killed_again_and_again_ends_as_one_that_was_not(whole: Path, tmp_path: Path) -> None:
    started_trials = itertools.count(1)
    for _ in range(3):
        victim, wanted = started(tmp_path, [*SEARCH, "hydra.sweeper.trials=20"]), 2 * next(started_trials)
        while victim.is_alive() and len(list((tmp_path / "outputs").glob("cache/runs/*.json"))) < wanted:
            time.sleep(0.02)
        victim.kill()
        victim.join()
        assert victim.exitcode == -9, "it was quicker than this test"
    ended(tmp_path, "hydra.sweeper.trials=20")
    result, records = found(tmp_path)
    expected, rows = found(whole)
    assert [(b["settings"], b["values"]) for b in result["best"]] == [
        (b["settings"], b["values"]) for b in expected["best"]
    ]
    assert result["ended"] == expected["ended"] and len(records) == 10 and any(r.reused for r in records)
    assert [r.label for r in records] == [r.label for r in rows], "in the same order"


@pytest.mark.thorough
def test_trials_run_side_by_side(whole: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "pictures")
    words = [*SEARCH, "hydra.sweeper.trials=4", "hydra/launcher=joblib", "hydra/sweeper/sampler=random"]
    words += own_lock(tmp_path)
    surroundings = {**os.environ, "PYTHONPATH": str(Path(compress.__file__).parent), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, str(compress.__file__), *words]
    process = subprocess.run(line, cwd=tmp_path, env=surroundings, capture_output=True, text=True, timeout=600)
    log = process.stdout + process.stderr
    assert process.returncode == 0 and "Traceback" not in log and "Warning" not in log, log
    result, records = found(tmp_path)
    assert sum(result["ended"].values()) == len(records) == 4 and "#0 " in log and "#3 " in log

    def told(record: Record) -> tuple[Any, ...]:
        size = record.metrics.get(
            "size_mb"
        )  # the compressed text of a graph differs by some bytes from process to process
        return record.label, record.status, record.metrics.get("val_top1"), size and round(size, 4)

    assert {told(each) for each in records} <= {told(each) for each in found(whole)[1]}


@pytest.mark.parametrize("words", [["--help"], ["--cfg", "hydra", "experiment=search", "model=resnet8"]])
def test_what_runs_nothing_imports_no_optuna(words: list[str]) -> None:
    line = [sys.executable, "-X", "importtime", str(Path(compress.__file__)), *words]
    imported = subprocess.run(line, capture_output=True, text=True, check=True).stderr
    modules = {row.rpartition("|")[2].strip() for row in imported.splitlines()}
    assert "qexp.cli" in modules and not modules & {"optuna", "sqlalchemy", "torch", "qexp.search.search"}
