"""Compares a sweep with the published table that it reproduces, in what does not depend on the machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexp.metrics import HIGHER, METRICS, Metric
from qexp.records import Record
from qexp.report.render import NONE, Table, markdown
from qexp.report.runs import Run

BETTER, WORSE = " ▲", " ▼"
LEGEND = (
    "▲ better or ▼ worse than the reference (in brackets), where different machines can be compared: "
    "accuracy lost, size, and times relative to fp32 in the same table"
)

Figures = Mapping[str, float]  # values by the names of metrics
Figure = Callable[[Figures, Figures | None], float | None]  # the figures of a row and of the row it is compared with


@dataclass(frozen=True)
class Comparison:
    """A column with one figure of ours beside the reference's.

    Attributes:
        title: Title of the column.
        figure: Computes the figure from the figures of a row and of the row that it is compared with, which may be
            None. Returns None if the figure is missing.
        metric: Metric that says how the figure is written and in which direction it is better.
        compared: Whether a mark says which of the two figures is better.
    """

    title: str
    figure: Figure
    metric: Metric
    compared: bool = True


def own(name: str, compared: bool = False) -> Comparison:
    """A column with the metric itself."""
    metric = METRICS[name]
    return Comparison(metric.title, lambda row, base: row.get(name), metric, compared)


def lost(name: str) -> Comparison:
    """A column with how much lower the metric is than in the row that a row is compared with."""

    def figure(row: Figures, base: Figures | None) -> float | None:
        return base[name] - row[name] if base and name in row and name in base else None

    return Comparison(f"{METRICS[name].title.removesuffix(' %')} lost", figure, METRICS["top1_drop"])


def times_less(name: str, ratio: str) -> Comparison:
    """A column with how many times less the metric is than in the row that a row is compared with.

    Args:
        name: Name of the metric.
        ratio: Name of the metric that is the same ratio to fp32, after which the column is named.
    """

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
    """A row of the reference, and our run of the same.

    Attributes:
        name: Name of the row in the reference.
        theirs: Figures in the reference.
        ours: Record of our run, or None if it did not run.
        base: The reference's figures for the row that this one is compared with, or None if there is no such row.
        our_base: Record of our run of the row that this one is compared with, or None if there is none.
    """

    name: str
    theirs: Figures
    ours: Record | None
    base: Figures | None
    our_base: Record | None


@dataclass(frozen=True)
class Reference:
    """A published table, and the runs that reproduce it.

    Attributes:
        title: Title of the table.
        rows: Rows of the table, repeated for each combination of whatever else the sweep goes through.
    """

    title: str
    rows: list[Row]

    @classmethod
    def read(cls, sweep: Path, runs: list[Run]) -> Reference | None:
        """Read the table that a sweep reproduces. None if it reproduces none.

        The jobs of the sweep are the listed rows, over and over again.

        Args:
            sweep: Folder of the sweep.
            runs: Runs of the sweep.
        """
        try:
            values = json.loads((sweep / "rows.json").read_text())
        except FileNotFoundError:
            return None
        listed: list[dict[str, Any]] = values["rows"]
        # A folder with another name than a number holds the record of a device.
        jobs = {int(run.folder.name): run.record for run in runs if run.folder.name.isdigit()}
        places = {row["name"]: place for place, row in enumerate(listed)}
        rows = []
        for job in range(-(-(max(jobs, default=0) + 1) // len(listed)) * len(listed)):
            place = job % len(listed)
            base = places[listed[place].get("against", listed[0]["name"])]
            ours = jobs.get(job)
            compared = {"base": None, "our_base": None}
            if base != place:
                compared = {
                    "base": _figures(listed[base], ours),  # type: ignore[dict-item]
                    "our_base": jobs.get(job - place + base),  # type: ignore[dict-item]
                }
            rows.append(Row(listed[place]["name"], _figures(listed[place], ours), ours, **compared))
        return cls(values["title"], rows)

    def table(self) -> Table:
        """Make the table of our figures, with the reference's in brackets."""
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
        """Our networks and images, which may differ from the reference's, and the legend."""
        ours = [row.ours.params for row in self.rows if row.ours]
        networks, images = (
            ", ".join(dict.fromkeys(str(params.get(name)) for params in ours)) for name in ("model", "data")
        )
        return f"{networks} on {images}; {LEGEND}" if ours else LEGEND

    def markdown(self) -> str:
        return f"## {self.title}\n\n{markdown(self.table())}\n"


def _figures(row: Mapping[str, Any], ours: Record | None) -> Figures:
    """The reference's figures for a row. If our batch size is another one, only those that do not depend on it."""
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
