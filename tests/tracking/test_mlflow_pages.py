"""What MLflow's pages are told to show; that they do was seen in a browser."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from qexp.records import Record
from qexp.tracking.mlflow_pages import BARS, COLUMNS, described, flatten, swept_options, view_key, view_tag
from tests.tracking.views import unpacked

MakeRecord = Callable[..., Record]


def test_a_view_shows_what_compares_compressed_networks() -> None:
    tag = view_tag("sweep monday", "tags.a = 'b'", ["method.observer"], 7)
    assert len(tag) < 5000
    state = unpacked(json.loads(tag))
    assert state["searchFilter"] == "tags.a = 'b'"
    assert state["selectedColumns"][:2] == ["params.`method.observer`", "metrics.`top1`"] and len(COLUMNS) < len(
        state["selectedColumns"]
    )
    assert state["columnOrder"][1:] == state["selectedColumns"] and {*state["columnOrder"]} == {*state["columnWidths"]}
    charts, (own, others) = state["compareRunCharts"], state["compareRunSections"]
    assert {chart["metricSectionId"] for chart in charts} == {own["uuid"]} and own["display"] and not others["display"]
    assert len({chart["uuid"] for chart in charts}) == len(charts)
    assert [chart["metricKey"] for chart in charts if chart["type"] == "BAR"] == list(BARS)
    assert [(c["xaxis"]["key"], c["yaxis"]["key"]) for c in charts if c["type"] == "SCATTER"][0] == (
        "latency_ms",
        "top1",
    )


def test_the_key_of_a_view_is_one_that_mlflow_takes() -> None:
    keys = {view_key(sweep) for sweep in ("2026-01-01", "my sweep's 1st & last", "ä/ö")}
    assert len(keys) == 3 and all(key.isalnum() for key in keys)


def test_options_that_were_swept_through_are_found(record: MakeRecord) -> None:
    def of(method: str, **options: Any) -> Record:
        params = {**record().params, "method": method, "threads": options.pop("threads", 2)}
        return record(params=params, config={"method": {"_target_": method, **options}, "seed": 1})

    assert swept_options([of("static", observer="mse"), of("none"), of("dynamic", reduced=True)]) == [], (
        "methods have options of their own"
    )
    found = swept_options([of("static", observer="mse", add_bits=8), of("static", add_bits=8), of("none", threads=1)])
    assert found == ["method.observer", "threads"]


def test_a_long_description_is_cut_between_lines_and_keeps_its_links() -> None:
    rows = [f"| row {i} | {'x' * 90} |" for i in range(200)]
    links = {"Charts": "/#/charts"}
    assert described("\n".join(rows[:5]), links) == "[Charts](/#/charts)\n\n" + "\n".join(rows[:5])
    long = described("\n".join(rows), links)
    assert 7800 < len(long) <= 8000 and long.startswith("[Charts](/#/charts)") and long.endswith("artifact results.md.")
    kept = [line for line in long.splitlines() if line.startswith("| row")]
    assert kept == rows[: len(kept)]
    many = described("\n".join(rows), {**links, "All": "L" * 9000})
    assert many == long, "a link that has no room is left out"


def test_flatten_joins_keys_and_leaves_out_what_is_null() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": None, "e": {}}, "f": [1, 2], "g": 0}) == {"a.b.c": 1, "f": [1, 2], "g": 0}
