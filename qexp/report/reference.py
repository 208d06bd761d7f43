"""A sweep beside the table that it reproduces: which of the two is better, in what does not depend on the machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexp.metrics import HIGHER, METRICS, Metric
from qexp.report.render import NONE, Table, markdown
from qexp.report.runs import Run
from qexp.types import Record

BETTER, WORSE = " ▲", " ▼"
LEGEND = (
    "▲ better and ▼ worse than the reference (in brackets), in what machines have in common: accuracy lost, size, and times as ratios to "
    "fp32 in the same table"
)

Figures = Mapping[str, float]  # by the names of metrics
Figure = Callable[[Figures, Figures | None], float | None]


@dataclass(frozen=True)
class Comparison:
    """One figure of ours beside theirs.

    Args:
        title: Over the column.
        figure: Of a row's metrics and those of the row that it is compared with, if there is one; None where it is missing.
        metric: What the figure is written as, and which way it is better.
        compared: Whether it is said which of ours and theirs is better.
    """

    title: str
    figure: Figure
    metric: Metric
    compared: bool = True


def own(name: str, compared: bool = False) -> Comparison:
    metric = METRICS[name]
    return Comparison(metric.title, lambda row, base: row.get(name), metric, compared)


def lost(name: str) -> Comparison:
    def figure(row: Figures, base: Figures | None) -> float | None:
        return base[name] - row[name] if base and name in row and name in base else None

    return Comparison(f"{METRICS[name].title.removesuffix(' %')} lost", figure, METRICS["top1_drop"])


def times_less(name: str, ratio: str) -> Comparison:
    """How many times less than the row that it is compared with; ratio: the metric that says the same of fp32."""

    def figure(row: Figures, base: Figures | None) -> float | None:
        return base[name] / row[name] if base and name in row and name in base else None

    return Comparison(METRICS[ratio].title, figure, METRICS[ratio])


COLUMNS = (
    own("top1"),
    lost("top1"),
    own("top5"),
    lost("top5"),
    own("loss"),
    own("size_mb", compared=True),
    times_less("size_mb", "size_ratio"),
    own("latency_ms"),
    times_less("latency_ms", "speedup"),
    own("latency_ms_per_image"),
    times_less("latency_ms_per_image", "speedup"),
    own("test_seconds"),
    times_less("test_seconds", "speedup"),
    own("allocated_mib"),
)


@dataclass(frozen=True)
class Row:
    """name: as the reference calls it; theirs: its figures; ours: the record of the same, if it ran; base, our_base: the same of the
    row that it is compared with, None of the first."""

    name: str
    theirs: Figures
    ours: Record | None
    base: Figures | None
    our_base: Record | None


@dataclass(frozen=True)
class Reference:
    """title: of the table that is reproduced."""

    title: str
    rows: list[Row]

    @classmethod
    def read(cls, sweep: Path, runs: list[Run]) -> Reference | None:
        """That of the sweep in this folder; None where it reproduces none. Its jobs are the listed rows, over and over again."""
        try:
            values = json.loads((sweep / "rows.json").read_text())
        except FileNotFoundError:
            return None
        listed: list[dict[str, Any]] = values["rows"]
        jobs = {int(run.folder.name): run.record for run in runs if run.folder.name.isdigit()}  # others are devices'
        places = {row["name"]: place for place, row in enumerate(listed)}
        rows = []
        for job in range(-(-(max(jobs, default=0) + 1) // len(listed)) * len(listed)):
            place = job % len(listed)
            base = places[listed[place].get("against", listed[0]["name"])]
            ours = jobs.get(job)
            compared = {"base": None, "our_base": None}
            if base != place:
                compared = {"base": _figures(listed[base], ours), "our_base": jobs.get(job - place + base)}  # type: ignore[dict-item]
            rows.append(Row(listed[place]["name"], _figures(listed[place], ours), ours, **compared))
        return cls(values["title"], rows)

    def table(self) -> Table:
        """Ours, and theirs in brackets."""
        shown = [
            column for column in COLUMNS if any(column.figure(row.theirs, row.base) is not None for row in self.rows)
        ]
        batches = {row.ours.params.get("batch_size") for row in self.rows if row.ours}
        titles = ["row", *(["batch"] if len(batches) > 1 else []), *(column.title for column in shown)]
        rows = []
        for row in self.rows:
            batch = [str(row.ours.params.get("batch_size")) if row.ours else NONE] if len(batches) > 1 else []
            name = row.name if row.ours is None or row.ours.status == "finished" else f"{row.name} ({row.ours.status})"
            rows.append((name, *batch, *(_cell(column, row) for column in shown)))
        return Table(tuple(titles), tuple(rows), left=frozenset({0}), title=self.title, notes=(self.caption,))

    @property
    def caption(self) -> str:
        """What ours are of, as another network and other images than the reference's may have been chosen."""
        ours = [row.ours.params for row in self.rows if row.ours]
        networks, images = (
            ", ".join(dict.fromkeys(str(params.get(name)) for params in ours)) for name in ("model", "data")
        )
        return f"{networks} on {images}; {LEGEND}" if ours else LEGEND

    def markdown(self) -> str:
        return f"## {self.title}\n\n{markdown(self.table())}\n"


def _figures(row: Mapping[str, Any], ours: Record | None) -> Figures:
    """What the reference says of a row; at another batch size than the reference's only what does not depend on it."""
    same_batch = ours is None or ours.params.get("batch_size") == row.get("batch_size", ours.params.get("batch_size"))
    return {name: row[name] for name in row if name in METRICS and (same_batch or not METRICS[name].per_machine)}


def _cell(column: Comparison, row: Row) -> str:
    ours = column.figure(row.ours.metrics, row.our_base.metrics if row.our_base else None) if row.ours else None
    theirs = column.figure(row.theirs, row.base)
    if ours is None and theirs is None:
        return NONE
    left, right = (NONE if value is None else column.metric.text(value) for value in (ours, theirs))
    mark = ""
    if column.compared and ours is not None and theirs is not None and left != right:
        mark = BETTER if (ours > theirs) == (column.metric.better == HIGHER) else WORSE
    return f"{left}{mark} ({right})"
