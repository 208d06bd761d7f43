"""The same runs on several devices stand side by side, and each device has its own fastest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from qexp.metrics import METRICS
from qexp.records import FP32_ENGINE, Record
from qexp.report.matrix import device_matrix
from qexp.report.runs import Run, where
from qexp.report.table import csv_table, legend, table
from qexp.report.terms import equal_terms
from qexp.report.verdict import verdicts
from tests.report.support import record


def at(device: str, label: str, ms: float, kind: str = "measured", **environment: Any) -> Record:
    """A record of another device or, with `local`, one as it is made on the machine of qexp."""
    made = record(label, top1=0.9, top1_drop=0.0, size_mb=1.0)
    elsewhere = {} if device == "local" else {"device": device}
    times = (METRICS["latency_ms"].of(ms, kind), METRICS["latency_low_ms"].of(ms, kind))
    return replace(
        made, key=f"{device} {label}", params={**made.params, **elsewhere, "threads": 2 if elsewhere else 4},
        measurements=(*made.measurements, *times, METRICS["latency_high_ms"].of(ms, kind)),
        environment={"host": device, **environment},
    )  # fmt: skip


ROWS = [
    at("local", "fp32", 4.0), at("local", "static int8", 1.0), at("board", "fp32", 40.0),
    at("board", "static int8", 50.0), at("board", "half", 60.0),
]  # fmt: skip


def test_each_device_is_a_column_with_a_fastest_of_its_own() -> None:
    matrix = device_matrix(ROWS)
    assert matrix and matrix.titles == ("model", "method", "engine", "batch", "local", "board")
    assert [row[1:2] + row[4:] for row in matrix.rows] == [
        ("fp32", "4.00", "40.0"), ("static int8", "1.00", "50.0"), ("half", "–", "60.0"),
    ]  # fmt: skip
    assert matrix.marks == {(1, 4), (0, 5)}
    assert device_matrix(ROWS[:2]) is None and device_matrix(ROWS[2:]) is None


def test_what_counts_for_nothing_is_in_brackets_and_never_the_fastest() -> None:
    rows = [*ROWS[:3], at("board", "static int8", 5.0, "emulated"), at("board", "half", 6.0, "disturbed")]
    matrix = device_matrix(rows)
    assert matrix and [row[5] for row in matrix.rows] == ["40.0", "(5.00)", "(6.00)"]
    assert (1, 5) in matrix.faint and (1, 5) not in matrix.marks
    assert any("emulated" in line for line in legend(rows)) and any("disturbed" in line for line in legend(rows))
    assert rows[3].emulated and not rows[3].disturbed, "it would not be measured again"


def test_the_table_names_devices_where_there_are_several() -> None:
    assert "device" not in table(ROWS[:2]).titles and "device" in table(ROWS[2:]).titles
    shown = table(ROWS)
    assert [row[shown.titles.index("device")] for row in shown.rows] == ["local"] * 2 + ["board"] * 3
    assert "machine" not in shown.titles, "the device says it already"
    latency = shown.titles.index("ms")
    assert {row for row, column in shown.marks if column == latency} == {1, 2}
    again = replace(ROWS[2], environment={"host": "another board"})
    assert {"device", "machine"} <= {*table([*ROWS, again]).titles}
    assert [line.split(",")[0] for line in csv_table(ROWS).splitlines()[1:]] == ["finished"] * 5
    assert csv_table(ROWS).count("local,") >= 2


def test_verdicts_are_by_device() -> None:
    found = verdicts([Run(each, Path()) for each in ROWS], points=1)
    assert [verdict.title for verdict in found] == [
        "vgg, pets, 4 threads, on local", "vgg, pets, 2 threads, on board",
    ]  # fmt: skip
    assert "static int8" in found[0].sentences[0] and "fp32" in found[1].sentences[0]


def test_runs_are_found_by_their_device() -> None:
    runs = [Run(each, Path()) for each in ROWS]
    assert len(where(runs, "device=board")) == 3 and len(where(runs, "device=local")) == 2


def test_rows_of_a_device_are_on_equal_terms_by_the_baseline_that_it_has() -> None:
    slow = at("board", "static int8", 12.0, **{FP32_ENGINE: "onnxruntime"})
    gains = [METRICS[f"speedup{end}"].of(5.0) for end in ("", "_low", "_high")]
    slow = replace(slow, measurements=(*slow.measurements, *gains))
    fp32 = at("board", "none", 40.0, **{FP32_ENGINE: "onnxruntime"})
    fp32 = replace(fp32, params={**fp32.params, "engine": "onnxruntime"})
    assert [terms["latency_ms"] for terms in equal_terms([slow, fp32])] == [10.0, 50.0]  # of 60 and 40 ms: 50
    elsewhere = replace(fp32, environment={})
    assert [terms["latency_ms"] for terms in equal_terms([slow, elsewhere])] == [12.0, 40.0], "it is no baseline"
