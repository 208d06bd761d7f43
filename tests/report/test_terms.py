"""Times of rows are ranked without the drift of the machine between them, by ratios that are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qexp.records import Record
from qexp.report.runs import Run, runs_of, with_heat
from qexp.report.table import best_rows, legend
from qexp.report.terms import LATENCY, equal_terms
from qexp.report.verdict import could_be_fastest, verdicts
from qexp.tracking.store import write_record
from tests.report.support import record


def timed(label: str, ms: float, drift: float, width: float = 0.01, **metrics: float) -> Record:
    """A row whose network takes `ms` where fp32 takes 8, timed while the machine took `drift` times that."""
    speedup = {"speedup": 8 / ms, "speedup_low": 8 / ms * (1 - width), "speedup_high": 8 / ms * (1 + width)}
    latency = {"latency_ms": ms * drift, "latency_low_ms": ms * drift * 0.99, "latency_high_ms": ms * drift * 1.01}
    return record(label, **latency, **(speedup if ms != 8 else {}), **metrics)


BASELINE = replace(timed("fp32", 8, 1.0), params={**record("none").params, "label": "fp32"})
ROWS = [BASELINE, timed("a", 2.0, 1.5), timed("b", 2.5, 1.0), timed("c", 4.0, 0.5)]


def test_rows_are_ranked_as_if_they_had_been_timed_at_one_moment() -> None:
    assert best_rows(LATENCY, [replace(row, measurements=row.measurements[:3]) for row in ROWS[1:]]) == {2}
    assert best_rows(LATENCY, ROWS) == {1}, "c took the fewest milliseconds, on a machine that was twice as fast then"
    found = [metrics[LATENCY.name] for metrics in equal_terms(ROWS)]
    moment = np.median([8 * drift for drift in (1.0, 1.5, 1.0, 0.5)])
    assert found == pytest.approx([moment * ms / 8 for ms in (8, 2.0, 2.5, 4.0)])
    assert equal_terms(ROWS)[1][LATENCY.low] == pytest.approx(2 / 1.01) and ROWS[1].metrics[LATENCY.name] == 3.0
    runs = [Run(replace(row, params={**row.params, "threads": 1}), Path()) for row in ROWS]
    (verdict,) = verdicts(runs, 1)
    assert any("Fastest: a on eager, 3.00 ms" in sentence for sentence in verdict.sentences)


def test_a_row_without_a_ratio_leaves_the_milliseconds_to_decide() -> None:
    rows = [*ROWS, record("device", latency_ms=1.0)]
    assert equal_terms(rows) == [row.metrics for row in rows] and best_rows(LATENCY, rows) == {4}


def test_a_heat_decides_between_those_that_ratios_do_not_tell_apart(tmp_path: Path) -> None:
    near = [BASELINE, timed("a", 2.0, 1.0, 0.05), timed("b", 2.02, 1.0, 0.05), timed("c", 4.0, 1.0)]
    assert best_rows(LATENCY, near) == {1, 2}
    heat = {"a": (1.2, 1.15, 1.25), "b": (1.0, 1.0, 1.0)}
    told = [with_heat(row, heat) for row in near]
    assert best_rows(LATENCY, told) == {2} and "timed once more, in turns" in " ".join(legend(told))
    terms = equal_terms(told)
    assert terms[1][LATENCY.name] / terms[2][LATENCY.name] == pytest.approx(1.2)
    tie = {"a": (1.02, 0.99, 1.05), "b": (1.0, 1.0, 1.0)}
    assert best_rows(LATENCY, [with_heat(row, tie) for row in near]) == {1, 2}
    other = [replace(row, sweep="tuesday") if row.key == "a" else row for row in told]
    assert best_rows(LATENCY, other) == {1, 2}, "two heats were not timed in turns"

    for row in near:
        write_record(row, tmp_path / row.key)
    (tmp_path / "heat.json").write_text('{"a": [1.2, 1.15, 1.25]}')
    assert {run.record.key: run.record.metrics.get("heat_ratio") for run in runs_of(tmp_path)} == {
        "fp32": None, "a": 1.2, "b": None, "c": None,
    }  # fmt: skip


def test_those_that_could_be_the_fastest_are_the_leaders_and_whom_nothing_tells_apart_from_them() -> None:
    rows = [
        replace(BASELINE, measurements=(*BASELINE.measurements, *record("none", top1=0.9, top1_drop=0.0).measurements)),
        timed("quick", 1.0, 1.3, top1=0.5, top1_drop=0.4),
        timed("good", 2.0, 1.0, top1=0.899, top1_drop=0.001), timed("as good", 2.01, 1.1, top1=0.895, top1_drop=0.005),
        timed("slow", 4.0, 0.2, top1=0.9, top1_drop=0.0),
    ]  # fmt: skip
    found = could_be_fastest([Run(row, Path()) for row in rows], points=1)
    assert [run.record.key for run in found] == ["quick", "good", "as good"]
