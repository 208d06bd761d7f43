"""The table of a sweep: on screen, as Markdown, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from qexp.types import Record


@dataclass(frozen=True)
class Column:
    """title: over the column; metric: a record's metric; format: of its value; best: `min`, `max` or none."""

    title: str
    metric: str
    format: Callable[[float], str]
    best: Callable[[Sequence[float]], float] | None = None


def percent(value: float) -> str:
    return f"{100 * value:.2f}"


def significant(value: float) -> str:
    """Three significant digits, without an exponent; all digits before the point."""
    exponent = int(f"{value:.2e}".partition("e")[2])
    return f"{value:.{max(0, 2 - exponent)}f}"


COLUMNS = (
    Column("top-1 %", "top1", percent, max),
    Column("drop", "top1_drop", percent, min),
    Column("top-5 %", "top5", percent, max),
    Column("size MB", "size_mb", significant, min),
    Column("smaller", "size_ratio", lambda v: f"{v:.2f}x", max),
    Column("ms", "latency_ms", significant, min),
    Column("faster", "speedup", lambda v: f"{v:.2f}x", max),
    Column("memory MB", "memory_mb", significant, min),
    Column("int MACs", "quantized_macs_share", lambda v: f"{100 * v:.0f} %", None),
)
NAMES = ("model", "method", "engine", "batch")


def table(records: list[Record]) -> tuple[list[str], list[list[str]], list[list[bool]]]:
    """Titles, cells, and which cells are the best of their column among the rows of the same model, data and batch size."""
    rows = [record for record in records if record.status == "finished"]
    columns = [column for column in COLUMNS if any(column.metric in row.metrics for row in rows)]
    cells, best = [], []
    for row in rows:
        rivals = [r for r in rows if _group(r) == _group(row)]
        cells.append([*_names(row), *(_cell(column, row) for column in columns)])
        best.append([False] * len(NAMES) + [_is_best(column, row, rivals) for column in columns])
    return [*NAMES, *(column.title for column in columns)], cells, best


def _group(record: Record) -> tuple[object, ...]:
    return tuple(record.params[key] for key in ("model", "data", "batch_size"))


def _names(record: Record) -> list[str]:
    return [record.params["model"], record.params["label"], record.params["engine"], str(record.params["batch_size"])]


def _cell(column: Column, record: Record) -> str:
    value = record.metrics.get(column.metric)
    return "–" if value is None else column.format(value)


def _is_best(column: Column, record: Record, rivals: list[Record]) -> bool:
    values = [r.metrics[column.metric] for r in rivals if column.metric in r.metrics]
    # By what is shown: a winner in digits that nobody sees would confuse.
    return bool(
        column.best
        and column.metric in record.metrics
        and _cell(column, record) == column.format(column.best(values))
        and len({column.format(v) for v in values}) > 1
    )


def unfinished(records: list[Record]) -> list[str]:
    """A line for each run that ended otherwise, with its reason."""
    return [f"{record.status}: {record.label}: {record.reason}" for record in records if record.status != "finished"]


def rich_table(records: list[Record], title: str) -> Table:
    titles, cells, best = table(records)
    shown = Table(title=title, title_justify="left", caption="* best of its model and batch size", caption_justify="left")
    for index, name in enumerate(titles):
        shown.add_column(name, justify="left" if index < len(NAMES) - 1 else "right", no_wrap=True)
    for row, marks in zip(cells, best, strict=True):
        shown.add_row(*(f"[bold green]{escape(cell)}*[/]" if mark else escape(cell) for cell, mark in zip(row, marks, strict=True)))
    return shown


def markdown_table(records: list[Record]) -> str:
    titles, cells, best = table(records)
    lines = ["| " + " | ".join(titles) + " |", "|" + " --- |" * (len(NAMES) - 1) + " ---: |" * (len(titles) - len(NAMES) + 1)]
    for row, marks in zip(cells, best, strict=True):
        lines.append("| " + " | ".join(f"**{cell}**" if mark else cell for cell, mark in zip(row, marks, strict=True)) + " |")
    return "\n".join([*lines, *(f"\n{line}" for line in unfinished(records))])


def csv_table(records: list[Record]) -> str:
    """Every parameter and metric of every run, unrounded."""
    params = sorted({key for record in records for key in record.params})
    metrics = sorted({key for record in records for key in record.metrics})
    out = io.StringIO()
    writer = csv.DictWriter(out, ["status", "reason", *params, *metrics])
    writer.writeheader()
    for record in records:
        writer.writerow({"status": record.status, "reason": record.reason, **record.params, **record.metrics})
    return out.getvalue()
