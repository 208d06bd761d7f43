"""Which runs a report is of: sweeps by name, conditions, groups, and messages for what is not there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qexp.records import Record
from qexp.report.runs import Run, differing, grouped, read_runs, where
from qexp.tracking.store import write_record
from qexp.types import UserError
from tests.report.support import FP32, HALF, INT8, record


def runs(*records: Record) -> list[Run]:
    return [Run(each, Path()) for each in records]


ROWS = runs(
    replace(FP32, environment={"host": "one"}, config={"seed": 1}),
    replace(
        INT8, environment={"host": "two"}, config={"method": {"_target_": "x", "observer": "mse", "group_size": None}}
    ),
    record("half", model="torchvision/a,b", batch=8, status="failed"),
)


@pytest.mark.parametrize(
    ("conditions", "kept"),
    [
        ("", [0, 1, 2]),
        ("model=vgg", [0, 1]),
        ("model=vgg,batch_size=1 and size_mb<10", [1]),
        ("model = vgg and top1 >= 0.9", [0]),
        ("top1!=0.9", [1, 2]),
        ("top1=0.900", [0]),
        ("batch_size>1", [2]),
        ("latency_ms<=4", [0, 1]),
        ("machine=two", [1]),
        ("status=failed", [2]),
        ("label='static int8'", [1]),
        ('model="torchvision/a,b"', [2]),
        ("method.observer=mse", [1]),
        ("sweep=monday", [0, 1, 2]),
    ],
)
def test_conditions(conditions: str, kept: list[int]) -> None:
    assert where(ROWS, conditions) == [ROWS[i] for i in kept]


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ("modle=vgg", "no run has a 'modle'. did you mean 'model'"),
        ("vgg", "where='vgg' is no condition"),
        ("model<vgg", "is no number: 'vgg'"),
        ("top1>", "is no number: ''"),
    ],
)
def test_conditions_that_mean_nothing(conditions: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        where(ROWS, conditions)


def test_groups_keep_their_order() -> None:
    assert {key: len(rows) for key, rows in grouped(ROWS, ["model", "nothing"]).items()} == {
        ("vgg", ""): 2,
        ("torchvision/a,b", ""): 1,
    }
    assert differing(ROWS, ["model", "data", "machine"]) == ["model", "machine"]


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    again = replace(FP32, reused="sweeps/1_monday/0")
    for sweep, made in (("1_monday", FP32), ("2_tuesday", INT8), ("2_tuesday", again), ("3_empty", None)):
        folder = tmp_path / "sweeps" / sweep
        folder.mkdir(parents=True, exist_ok=True)
        if made:
            write_record(replace(made, sweep=sweep), folder / str(len(list(folder.iterdir()))))
    return tmp_path


def test_sweeps_by_name(outputs: Path) -> None:
    def labels(sweep: str) -> list[tuple[str, str]]:
        return [(run.record.sweep, run.folder.name) for run in read_runs(outputs, sweep)]

    assert labels("latest") == labels("2_tuesday") == [("2_tuesday", "0"), ("2_tuesday", "1")]
    assert labels("1_monday") == [("1_monday", "0")]
    assert labels("all") == [("1_monday", "0"), ("2_tuesday", "0")], "what a later sweep took over counts once"


def test_sweeps_that_are_not_there(outputs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no sweep=tuesday.*did you mean '2_tuesday'"):
        read_runs(outputs, "tuesday")
    with pytest.raises(UserError, match="nowhere holds no finished runs: give outputs=FOLDER"):
        read_runs(tmp_path / "nowhere", "latest")


def test_a_run_without_a_label_goes_by_its_method() -> None:
    broken = record("half", status="failed")
    del broken.params["label"]
    assert runs(broken)[0].names["label"] == "half"
    assert where(runs(broken, HALF), "label=half") == runs(broken, HALF)
