"""Rows of several seeds as one, against numpy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from qexp.metrics import METRICS
from qexp.records import Record
from qexp.report.render import markdown, rich_table
from qexp.report.runs import Run
from qexp.report.seeds import seeds_table, spread
from qexp.report.write import Style, write_report
from tests.report.support import made, record


def seeded(label: str, seed: int, top1: float, **options: Any) -> Record:
    row = made(label, seed, metrics={"top1": top1, "size_mb": 2.5}, **options)
    return replace(row, params=row.params | {"seed": seed})


TOP1 = {"static int8": [0.871, 0.8655, 0.88], "qat int4": [0.86, 0.85]}
ROWS = [seeded(label, seed, top1) for label, values in TOP1.items() for seed, top1 in enumerate(values)]


def test_each_row_is_the_mean_and_the_standard_deviation_of_its_seeds() -> None:
    seeds = seeds_table(ROWS)
    assert seeds is not None
    rows = [dict(zip(seeds.titles, row, strict=True)) for row in seeds.rows]
    assert [(row["method"], row["seeds"]) for row in rows] == [("static int8", "3"), ("qat int4", "2")]
    for row, values in zip(rows, TOP1.values(), strict=True):
        assert row["top-1 %"] == f"{100 * np.mean(values):.2f} ± {100 * np.std(values, ddof=1):.2f}"
        assert row["size MB"] == "2.50", "the same in all"


def test_a_seed_that_ran_again_counts_once() -> None:
    again = seeds_table([seeded("static int8", 0, 0.1), *ROWS])
    assert again is not None and again == seeds_table(ROWS)
    assert seeds_table([ROWS[0], ROWS[0]]) is None


def test_other_options_part_the_rows() -> None:
    rows = [
        seeded("static int8", seed, 0.5 + seed / 10, observer=observer)
        for seed in (0, 1)
        for observer in ("mse", "minmax")
    ]
    seeds = seeds_table(rows)
    assert seeds is not None and seeds.titles.count("observer") == 1 and "seed" not in seeds.titles
    assert [row[seeds.titles.index("observer")] for row in seeds.rows] == ["mse", "minmax"]


@pytest.mark.parametrize("rows", [[], [ROWS[0]], [ROWS[0], ROWS[3]], [ROWS[0], record("fp32", status="failed")]])
def test_without_several_seeds_there_is_no_such_table(rows: list[Record]) -> None:
    assert seeds_table(rows) is None


@pytest.mark.parametrize(
    ("values", "metric", "text"),
    [
        ([], "top1", "–"),
        ([0.5], "top1", "50.00"),
        ([0.25, 0.75], "top1", "50.00 ± 35.36"),
        ([0.0610, 0.0613, 0.0614], "latency_ms", "0.0612 ± 0.0002"),
        ([123.0, 125.0], "latency_ms", "124 ± 1"),
        ([5.34, 5.37], "speedup", "5.36 ± 0.02x"),
        ([0.5, 0.54], "sparsity", "52 ± 3 %"),
        ([-0.01, 0.01], "top1", "0.00 ± 1.41"),
    ],
)
def test_how_a_spread_is_written(values: list[float], metric: str, text: str) -> None:
    assert spread(values, METRICS[metric]) == text


def test_results_and_screen_have_it(tmp_path: Path) -> None:
    runs = [Run(row, tmp_path) for row in ROWS]
    written = write_report(runs, tmp_path / "report", "sweep", Style(("md",))).markdown
    seeds = seeds_table(ROWS)
    assert seeds is not None and markdown(seeds) in written
    console = Console(width=120, record=True, file=(tmp_path / "screen").open("w"))
    console.print(rich_table(seeds))
    assert "87.22 ± 0.73" in console.export_text()
