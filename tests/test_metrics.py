"""The table of metrics: what follows by rule, what views may name, and records that describe metrics themselves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qexp.metrics import METRICS, Metric, known_metric, metrics_of, own_metrics
from qexp.records import Measurement, Record
from qexp.report import axes, page_data, table
from qexp.search.objectives import check_objective, values_of
from qexp.tracking import mlflow_pages
from qexp.tracking.imported import MEASURED
from qexp.tracking.store import read_record, write_record
from qexp.types import UserError
from tests.report.support import FP32, INT8, record, table_of

MISSES = {"name": "misses", "unit": "count", "title": "misses", "form": "significant", "better": "lower"}


def with_misses(made: Record, value: float, **description: Any) -> Record:
    """The record with a metric that no code knows."""
    own = Measurement("misses", value, "count", description=MISSES | description)
    return replace(made, measurements=(*made.measurements, own))


def test_views_name_metrics_of_the_table_and_columns_have_titles_of_their_own() -> None:
    bounds = [bound for metric in METRICS.values() for bound in metric.bounds]
    named = [
        *bounds,
        *table.COLUMNS,
        *table.DROPPED_FIRST,
        *table.IF_CHANGED,
        *axes.COSTS,
        *axes.BENEFITS,
        *page_data.HOVER,
    ]
    named += [*page_data.CURVES, *mlflow_pages.COLUMNS, *mlflow_pages.BARS, *sum(mlflow_pages.CLOUDS, ())]
    assert {*named} <= METRICS.keys()
    titles = [METRICS[name].title for name in table.COLUMNS]
    assert all(titles) and len({*titles}) == len(titles)


def test_validation_follows_from_test() -> None:
    metric = METRICS["val_top1"]
    assert (metric.title, metric.bounds) == ("val %", ("val_top1_low", "val_top1_high"))
    assert METRICS["val_top1_drop"].title == "val drop" and METRICS["val_loss"].unit == "nats"
    assert not metric.on_test and metric.better == "higher" and "val_test_seconds" not in METRICS
    assert {name for name in METRICS if name.startswith("val_")} == {
        f"val_{name}" for name in ("top1", "top1_low", "top1_high", "top1_drop", "top1_drop_low",
        "top1_drop_high", "top5", "agreement", "loss", "mcnemar_p")
    }  # fmt: skip


def test_times_of_candidates_follow_a_rule() -> None:
    metric = known_metric("candidate_torch_ao_ms")
    assert metric and (metric.name, metric.unit, metric.per_machine) == ("candidate_torch_ao_ms", "ms", True)
    assert metric.of(1.0).description == {} and known_metric("candidate_torch_ao") is None


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [("top1", 0.8912, "89.12"), ("latency_ms", 1.234, "1.23"), ("speedup", 4, "4.00x"), ("sparsity", 0.6, "60 %")],
)
def test_how_values_are_written(name: str, value: float, shown: str) -> None:
    assert METRICS[name].text(value) == shown


def test_titles_of_axes_have_the_unit_that_is_shown() -> None:
    titles = [METRICS[name].axis_title for name in ("top1", "size_mb", "macs_m", "speedup")]
    assert titles == [
        "top-1 accuracy, %", "size on disk, MB", "multiply-accumulate operations, millions",
        "times as fast as fp32 on eager PyTorch",
    ]  # fmt: skip


def test_nothing_that_is_taken_on_test_images_is_an_objective() -> None:
    for metric in METRICS.values():
        if metric.on_test:
            with pytest.raises(UserError, match="taken on the test images, which choose nothing: use val_"):
                check_objective(metric, "maximize" if metric.better == "higher" else "minimize")
    on_test = {name for name, metric in METRICS.items() if metric.on_test and not metric.has_validation}
    assert on_test == {"test_seconds", "parity_agreement", "parity_max_error"}


def test_what_a_device_measures_does_not_carry_over() -> None:
    assert not any(METRICS[name].portable for name in MEASURED)
    assert {"latency_ms", "latency_low_ms", "throughput_ips", "load_ms", "first_call_ms", "memory_mb"} <= MEASURED
    assert not {"speedup", "top1", "size_mb", "parity_agreement"} & MEASURED


@pytest.mark.parametrize(
    "values", [{"form": "roman"}, {"better": "max"}, {"low": "x_low"}], ids=["form", "direction", "bounds"]
)
def test_a_metric_that_cannot_be_is_refused(values: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="metric x "):
        Metric("x", "ms", **values)  # type: ignore[arg-type]


def test_a_record_describes_a_metric_that_no_code_knows(tmp_path: Path) -> None:
    records = [with_misses(FP32, 1234.0), with_misses(INT8, 56.0)]
    for index, made in enumerate(records):
        write_record(made, tmp_path / str(index))
    again = [read_record(tmp_path / str(index) / "record.json") for index in range(2)]
    assert again == records and own_metrics(metrics_of(again)) == [Metric(**MISSES)]
    titles, cells, best = table_of(again)
    assert titles[-1] == "misses" and [row[-1] for row in cells] == ["1234", "56.0"]
    assert [marks[-1] for marks in best] == [False, True], "lower is better"


def test_a_search_heeds_what_a_record_says_of_its_metric() -> None:
    assert values_of(with_misses(FP32, 5.0), {"misses": "minimize"}) == ([5.0], "")
    with pytest.raises(UserError, match="misses=maximize would look for the worst: give minimize"):
        values_of(with_misses(FP32, 5.0), {"misses": "maximize"})
    with pytest.raises(UserError, match="misses is taken on the test images, which choose nothing: use val_top1"):
        values_of(with_misses(FP32, 5.0, on_test=True), {"misses": "minimize"})


def test_a_record_of_before_is_read_and_written_as_it_was(tmp_path: Path) -> None:
    before = record("fp32", top1=0.9, long_gone=3.0)
    write_record(before, tmp_path)
    assert "description" not in (tmp_path / "record.json").read_text()
    known = metrics_of([read_record(tmp_path / "record.json")])
    assert known["long_gone"] == Metric("long_gone", "x") and own_metrics(known) == []
    assert "long_gone" not in table_of([before])[0]


@pytest.mark.parametrize("wrong", [{"form": "roman"}, {"colour": "red"}, {"name": "another"}])
def test_a_description_that_is_none_is_told_with_its_file(wrong: dict[str, str], tmp_path: Path) -> None:
    write_record(with_misses(FP32, 1.0, **wrong), tmp_path)
    assert json.loads((tmp_path / "record.json").read_text())["measurements"][-1]["description"]
    with pytest.raises(UserError, match=r"record.json holds no record of this version of qexp: .*Move it away"):
        read_record(tmp_path / "record.json")
