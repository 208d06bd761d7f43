"""The table of a sweep: on screen, as Markdown, as CSV."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from qexp.report.options import NONE, differing_options, option_texts
from qexp.types import Record

NOISY = 0.1  # interquartile range over the median above which a latency is flagged


@dataclass(frozen=True)
class Column:
    """title: over the column; metric: a record's metric; format: of its value; best: `min`, `max` or none; interval: metrics
    that bound it, so that rows whose intervals overlap are not ranked; if_changed: a metric that
    must not be `unchanged` in all rows."""

    title: str
    metric: str
    format: Callable[[float], str]
    best: Callable[..., Record] | None = None
    interval: tuple[str, str] | None = None
    if_changed: str = ""
    unchanged: float = 1


def percent(value: float) -> str:
    return f"{100 * value:.2f}"


def significant(value: float) -> str:
    """Three significant digits, without an exponent; all digits before the point."""
    exponent = int(f"{value:.2e}".partition("e")[2])
    return f"{value:.{max(0, 2 - exponent)}f}"


def share(value: float) -> str:
    return f"{100 * value:.0f} %"


def times(value: float) -> str:
    return f"{value:.2f}x"


COLUMNS = (
    Column("top-1 %", "top1", percent, max),
    Column("drop", "top1_drop", percent, min),
    Column("top-5 %", "top5", percent, max),
    Column("val %", "val_top1", percent, max),
    Column("val drop", "val_top1_drop", percent, min),
    Column("size MB", "size_mb", significant, min),
    Column("smaller", "size_ratio", times, max),
    Column("MACs M", "macs_m", significant, min, if_changed="macs_ratio"),
    Column("fewer", "macs_ratio", times, max, if_changed="macs_ratio"),
    Column("ms", "latency_ms", significant, min, ("latency_low_ms", "latency_high_ms")),
    Column("faster", "speedup", times, max, ("speedup_low", "speedup_high")),
    Column("vs fp32", "speedup_vs_best_fp32", times, max, ("speedup_vs_best_fp32_low", "speedup_vs_best_fp32_high")),
    Column("memory MB", "memory_mb", significant, min),
    Column("low-bit", "quantized_macs_share", share),
    Column("zeros", "sparsity", share, if_changed="sparsity", unchanged=0),
)
NAMES = {"model": "model", "label": "method", "engine": "engine", "batch_size": "batch"}
# Columns of their own where a sweep goes through them, or its jobs ran on several machines.
IF_SEVERAL = {"data": "data", "image_size": "image", "threads": "threads", "host": "machine"}
TEXT = ("model", "method", "engine", "data", "machine")  # titles of columns aligned to the left
TITLES = (*NAMES.values(), *IF_SEVERAL.values(), *(column.title for column in COLUMNS))  # of no option
# What a narrow screen leaves out, in this order: the files have it all. Names are folded to so many characters first.
SPARED = (
    "low-bit",
    "zeros",
    "top-5 %",
    "memory MB",
    "MACs M",
    "smaller",
    "fewer",
    "faster",
    "drop",
    "val drop",
    "vs fp32",
    "size MB",
)
FOLDED = 20
LEGEND = "* best of its model and batch size; several where their intervals overlap"
REUSED = " ↺"
REUSED_LEGEND = "↺ measured in an earlier sweep, which results.csv names"
NOISY_LEGEND = "~ noisy: half of the calls differ by more than 10 % of the median"


def table(records: list[Record]) -> tuple[list[str], list[list[str]], list[list[bool]]]:
    """Titles, cells, and which cells are the best of their column among the rows of the same model, data, shape and threads, and, of
    times, the same machine."""
    rows = [record for record in records if record.status == "finished"]
    names = names_of(records)
    columns = [column for column in COLUMNS if any(shows(column, row) for row in rows)]
    rivals: dict[tuple[Column, object], list[Record]] = {}
    for row in rows:
        for column in columns:
            rivals.setdefault((column, _group(row, column)), []).append(row)
    winners = {group: _best(group[0], members) for group, members in rivals.items()}
    cells = [[*(_name(key, row) for key in names), *(_cell(column, row) for column in columns)] for row in rows]
    best = [
        [False] * len(names) + [id(row) in winners[column, _group(row, column)] for column in columns] for row in rows
    ]
    return [*names.values(), *(column.title for column in columns)], cells, best


def shows(column: Column, record: Record) -> bool:
    """Whether a table with this record has that column."""
    changed = not column.if_changed or record.metrics.get(column.if_changed, column.unchanged) != column.unchanged
    return changed and column.metric in record.metrics


def names_of(records: list[Record]) -> dict[str, str]:
    """Parameters, and options of the methods, that tell the rows apart, and their titles."""
    several = {key: title for key, title in IF_SEVERAL.items() if len({_value(key, r) for r in records} - {None}) > 1}
    return NAMES | several | differing_options(records, TITLES)


def text_titles(records: list[Record]) -> set[str]:
    """Titles of columns aligned to the left: names, and options that are not numbers throughout."""
    options = differing_options(records, TITLES).items()
    return {
        *TEXT,
        *(title for name, title in options if not all(_is_number(_name(name, record)) for record in records)),
    }


def noisy(record: Record) -> bool:
    return record.metrics.get("latency_spread", 0) > NOISY


def _value(key: str, record: Record) -> Any:
    return record.environment.get("host") if key == "host" else record.params.get(key)


def _group(record: Record, column: Column) -> tuple[object, ...]:
    """What rows have in common that are compared with each other in that column."""
    return tuple(
        _value(key, record) for key in ("model", "batch_size", *IF_SEVERAL) if key != "host" or column.interval
    )


def cell_name(key: str, record: Record) -> str:
    """The record's parameter or option of that name."""
    missing = "" if key in NAMES or key in IF_SEVERAL else NONE
    return str((record.params | {"host": _value("host", record)} | option_texts(record)).get(key, missing))


def _name(key: str, record: Record) -> str:
    """The same as the table has it."""
    return cell_name(key, record) + (REUSED if key == "label" and record.reused else "")


def _is_number(text: str) -> bool:
    return text in (NONE, "null") or re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", text) is not None


def _cell(column: Column, record: Record) -> str:
    value = record.metrics.get(column.metric)
    if value is None:
        return NONE
    return column.format(value) + "~" * (column.metric == "latency_ms" and noisy(record))


def _best(column: Column, rivals: list[Record]) -> set[int]:
    """Ids of the records that no other is better than; of none where all are as good."""
    compared = [r for r in rivals if column.metric in r.metrics]
    if column.best is None or not compared:
        return set()
    leader = column.best(compared, key=lambda r: r.metrics[column.metric])
    best = {
        id(r) for r in compared if tied(r.metrics, leader.metrics, column.metric, column.format, column.interval or ())
    }
    return best if len(best) < len(compared) else set()


def tied(
    ours: Mapping[str, float],
    theirs: Mapping[str, float],
    metric: str,
    shown: Callable[[float], str],
    bounds: Sequence[str],
) -> bool:
    """Whether two runs' metrics show the same (a winner in digits that nobody sees would confuse), or the intervals that `bounds` name
    overlap."""
    if shown(ours[metric]) == shown(theirs[metric]):
        return True
    if not bounds or not {*bounds} <= ours.keys() & theirs.keys():
        return False
    low, high = bounds
    return ours[low] <= theirs[high] and theirs[low] <= ours[high]


def unfinished(records: list[Record]) -> list[str]:
    """A line for each run that ended otherwise, with its reason."""
    return [f"{record.status}: {record.label}: {record.reason}" for record in records if record.status != "finished"]


def legend(records: list[Record]) -> list[str]:
    """Lines that explain the marks in the table, but for that of the best."""
    return [NOISY_LEGEND] * any(map(noisy, records)) + [REUSED_LEGEND] * any(record.reused for record in records)


def rich_table(records: list[Record], title: str, width: int = sys.maxsize) -> Table:
    """The table for a screen of `width` characters, on which no number is ever cut."""
    titles, cells, best = table(records)
    marked = [[cell + "*" * mark for cell, mark in zip(*row, strict=True)] for row in zip(cells, best, strict=True)]
    folding = {"method", *differing_options(records, TITLES).values()}
    left_out, fits = spared({name: [row[i] for row in marked] for i, name in enumerate(titles)}, folding, width)
    hint = [f"not on a screen as narrow as this: {', '.join(left_out)}"] * bool(left_out)
    shown = Table(
        title=title, title_justify="left", caption="\n".join([LEGEND, *legend(records), *hint]), caption_justify="left"
    )
    text, kept = text_titles(records), [i for i, name in enumerate(titles) if name not in left_out]
    for name in (titles[i] for i in kept):
        shown.add_column(
            name, justify="left" if name in text else "right", no_wrap=fits and name not in folding, overflow="fold"
        )
    for row, marks in zip(marked, best, strict=True):
        shown.add_row(*(f"[bold green]{escape(row[i])}[/]" if marks[i] else escape(row[i]) for i in kept))
    return shown


def spared(columns: dict[str, list[str]], folding: Collection[str], width: int) -> tuple[list[str], bool]:
    """Titles of the columns to leave out, so that the others fit into `width` characters, and whether they do."""

    def needed(title: str) -> int:
        widest = max(cell_len(text) for text in (title, *columns[title]))
        return (min(widest, FOLDED) if title in folding else widest) + 3  # a line and two spaces

    left_out, left, too_wide = [], list(filter(columns.__contains__, SPARED)), 1 + sum(map(needed, columns)) - width
    while too_wide > 0 and left:
        left_out.append(left.pop(0))
        too_wide -= needed(left_out[-1])
    return left_out, too_wide <= 0


def markdown_table(records: list[Record]) -> str:
    titles, cells, best = table(records)
    text = text_titles(records)
    lines = [
        "| " + " | ".join(titles) + " |",
        "|" + "|".join(" --- " if name in text else " ---: " for name in titles) + "|",
    ]
    for row, marks in zip(cells, best, strict=True):
        lines.append(
            "| " + " | ".join(f"**{cell}**" if mark else cell for cell, mark in zip(row, marks, strict=True)) + " |"
        )
    return "\n".join([*lines, *(f"\n{line}" for line in legend(records) + unfinished(records))])


def csv_table(records: list[Record]) -> str:
    """Every parameter, varied option and metric of every run, unrounded."""
    params = sorted({key for record in records for key in record.params})
    options = [name for name in differing_options(records) if name not in params]
    metrics = sorted({key for record in records for key in record.metrics})
    out = io.StringIO()
    writer = csv.DictWriter(out, ["status", "reason", "reused", "host", *params, *options, *metrics])
    writer.writeheader()
    for record in records:
        texts = {name: text for name, text in option_texts(record).items() if name in options}
        how = {
            "status": record.status,
            "reason": record.reason,
            "reused": record.reused,
            "host": _value("host", record),
        }
        writer.writerow({**how, **record.params, **texts, **record.metrics})
    return out.getvalue()
