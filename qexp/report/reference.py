"""A sweep beside the table that it reproduces: which of the two is better, in what does not depend on the machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from qexp.report.runs import Run
from qexp.report.table import NONE, percent, significant, times
from qexp.types import Record

BETTER, WORSE = " ▲", " ▼"
ANY_BATCH = ("top1", "top5", "loss", "size_mb")  # figures that the batch size has no part in
LEGEND = (
    "▲ better and ▼ worse than the reference (in brackets), in what machines have in common: accuracy lost, size, and times as ratios to "
    "fp32 in the same table"
)


Figures = Mapping[str, float]  # by the names of metrics
Figure = Callable[[Figures, Figures | None], float | None]


@dataclass(frozen=True)
class ReferenceColumn:
    """One figure of ours beside theirs. figure: of a row's metrics and those of the row that it is compared with, if there is one; None
    where it is missing; sign: 1 where more is better, -1 where less is, 0 where ours and theirs are not compared."""

    title: str
    figure: Figure
    format: Callable[[float], str]
    sign: int = 0


def own(metric: str) -> Figure:
    return lambda row, base: row.get(metric)


def lost(metric: str) -> Figure:
    return lambda row, base: base[metric] - row[metric] if base and metric in row and metric in base else None


def times_less(metric: str) -> Figure:
    return lambda row, base: base[metric] / row[metric] if base and metric in row and metric in base else None


COLUMNS = (
    ReferenceColumn("top-1 %", own("top1"), percent),
    ReferenceColumn("top-1 lost", lost("top1"), percent, -1),
    ReferenceColumn("top-5 %", own("top5"), percent),
    ReferenceColumn("top-5 lost", lost("top5"), percent, -1),
    ReferenceColumn("loss", own("loss"), significant),
    ReferenceColumn("size MB", own("size_mb"), significant, -1),
    ReferenceColumn("smaller", times_less("size_mb"), times, 1),
    ReferenceColumn("ms", own("latency_ms"), significant),
    ReferenceColumn("faster", times_less("latency_ms"), times, 1),
    ReferenceColumn("ms per image", own("latency_ms_per_image"), significant),
    ReferenceColumn("faster ", times_less("latency_ms_per_image"), times, 1),
    ReferenceColumn("test set s", own("test_seconds"), significant),
    ReferenceColumn("faster  ", times_less("test_seconds"), times, 1),
    ReferenceColumn("allocated MiB", own("allocated_mib"), significant),
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

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Titles and cells: ours, and theirs in brackets."""
        shown = [
            column for column in COLUMNS if any(column.figure(row.theirs, row.base) is not None for row in self.rows)
        ]
        batches = {row.ours.params.get("batch_size") for row in self.rows if row.ours}
        titles = ["row", *(["batch"] if len(batches) > 1 else []), *(column.title for column in shown)]
        cells = []
        for row in self.rows:
            batch = [str(row.ours.params.get("batch_size")) if row.ours else NONE] if len(batches) > 1 else []
            name = row.name if row.ours is None or row.ours.status == "finished" else f"{row.name} ({row.ours.status})"
            cells.append([name, *batch, *(_cell(column, row) for column in shown)])
        return titles, cells

    @property
    def caption(self) -> str:
        """What ours are of, as another network and other images than the reference's may have been chosen."""
        ours = [row.ours.params for row in self.rows if row.ours]
        networks, images = (
            ", ".join(dict.fromkeys(str(params.get(name)) for params in ours)) for name in ("model", "data")
        )
        return f"{networks} on {images}; {LEGEND}" if ours else LEGEND

    def rich_table(self) -> Table:
        titles, cells = self.table()
        shown = Table(title=self.title, title_justify="left", caption=self.caption, caption_justify="left")
        for title in titles:
            shown.add_column(title.strip(), justify="left" if title == "row" else "right", overflow="fold")
        for row in cells:
            shown.add_row(*map(escape, row))
        return shown

    def markdown(self) -> str:
        titles, cells = self.table()
        lines = [f"| {' | '.join(title.strip() for title in titles)} |", "| --- |" + " ---: |" * (len(titles) - 1)]
        return "\n".join(
            [f"## {self.title}\n", *lines, *(f"| {' | '.join(row)} |" for row in cells), f"\n{self.caption}\n"]
        )


def _figures(row: Mapping[str, Any], ours: Record | None) -> Figures:
    """What the reference says of a row; at another batch size than the reference's only what does not depend on it."""
    same_batch = ours is None or ours.params.get("batch_size") == row.get("batch_size", ours.params.get("batch_size"))
    return {
        name: row[name]
        for name in row
        if name in ANY_BATCH or same_batch and name not in ("name", "run", "against", "batch_size")
    }


def _cell(column: ReferenceColumn, row: Row) -> str:
    ours = column.figure(row.ours.metrics, row.our_base.metrics if row.our_base else None) if row.ours else None
    theirs = column.figure(row.theirs, row.base)
    if ours is None and theirs is None:
        return NONE
    left, right = (NONE if value is None else column.format(value) for value in (ours, theirs))
    mark = ""
    if ours is not None and theirs is not None and left != right and column.sign:
        mark = BETTER if column.sign * (ours - theirs) > 0 else WORSE
    return f"{left}{mark} ({right})"
