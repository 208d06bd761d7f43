"""Makes the table of a sweep: a row for each finished run, and a column for each name or metric that matters."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from qexp.metrics import HIGHER, METRICS, Metric, metrics_of, own_metrics
from qexp.records import LOCAL, Record
from qexp.report.options import differing_options, option_texts
from qexp.report.render import NONE, Table, latex, markdown
from qexp.report.terms import HEAT, equal_terms

NOISY = 0.1  # a latency is flagged if its interquartile range is more than this share of its median
COLUMNS = (
    "top1", "top1_drop", "top5", "val_top1", "val_top1_drop", "size_mb", "size_ratio", "macs_m", "macs_ratio",
    "latency_ms", "heat_ratio", "speedup", "speedup_vs_best_fp32", "memory_mb", "quantized_macs_share",
    "float_operators", "sparsity",
)  # fmt: skip
# Columns that are shown only if compression changed a metric in some row: the metric, and its unchanged value.
IF_CHANGED = {
    "macs_m": ("macs_ratio", 1),
    "macs_ratio": ("macs_ratio", 1),
    "sparsity": ("sparsity", 0),
    "float_operators": ("float_operators", 0),
}
NAMES = {"model": "model", "label": "method", "engine": "engine", "batch_size": "batch"}
# Columns that are shown only if the rows differ in them.
IF_SEVERAL = {"data": "data", "image_size": "image", "threads": "threads", "device": "device", "host": "machine"}
OF_DEVICES = ("device", "host")  # names by which rows are of different machines
TEXT = ("model", "label", "engine", "data", "device", "host")  # names aligned to the left
# Columns that a narrow screen leaves out, in this order and before metrics that only their measures' files know. The
# files of a report have all columns.
DROPPED_FIRST = (
    "float_operators", "quantized_macs_share", "sparsity", "top5", "memory_mb", "macs_m", "size_ratio", "macs_ratio",
    "speedup", "top1_drop", "val_top1_drop", "speedup_vs_best_fp32", "size_mb",
)  # fmt: skip
CAPTION = "* best among rows that can be compared; several if they tie"
REUSED = " ↺"
REUSED_LEGEND = "↺ measured in an earlier sweep, which results.csv names"
NOISY_LEGEND = "~ noisy: the middle half of the calls spans more than 10 % of the median"
HEAT_LEGEND = "heat: ms were taken minutes apart; times as long as the fastest when timed once more, in turns with it"
EMULATED_LEGEND = "( ) on an emulated processor: not ranked"
DISTURBED_LEGEND = "( ) disturbed: other processes used the cores; not ranked, and measured again by the same command"


def table(records: list[Record], title: str = "", reused: str = REUSED) -> Table:
    """Make a table with a row for each finished run, in which the best cells of a column are marked.

    Cells are compared among rows with the same model, data, image size, batch size and threads. For a metric that
    depends on the machine, they must also be from the same machine.

    Args:
        records: Records of all runs. Those that did not finish still count when columns of options are chosen.
        title: Title over the table on the screen.
        reused: Text after the label of a run whose result is from an earlier sweep.
    """
    rows = [record for record in records if record.status == "finished"]
    names, metrics = name_columns(records), metric_columns(records)
    keys, first = [*names, *(metric.name for metric in metrics)], len(names)
    dropped_first = (*DROPPED_FIRST, *(key for key in keys[first:] if key not in COLUMNS))
    cells = ((*(_name(key, row, reused) for key in names), *(cell(metric, row) for metric in metrics)) for row in rows)
    best = {(i, first + j) for j, metric in enumerate(metrics) for i in best_rows(metric, rows)}
    places = range(len(rows))
    folded = {place for place, key in enumerate(names) if key == "label" or is_option(key)}
    return Table(
        (*names.values(), *(metric.title for metric in metrics)), tuple(cells), frozenset(best),
        left=left_columns(names, records), whole=frozenset(range(len(keys))) - folded,
        dropped_first=tuple(keys.index(key, first) for key in dropped_first if key in keys[first:]),
        faint=frozenset((i, first + j) for j, m in enumerate(metrics) for i in places if m.name in rows[i].only_shown),
        title=title, caption=CAPTION if best else "", notes=tuple(legend(records)),
    )  # fmt: skip


def name_columns(records: list[Record]) -> dict[str, str]:
    """Titles of the parameters and options of methods that tell the rows apart, by name."""
    values = {key: {_value(key, record) for record in records} - {None} for key in IF_SEVERAL}
    several = {key: title for key, title in IF_SEVERAL.items() if len(values[key]) > 1}
    if values["device"] - {LOCAL}:
        several["device"] = IF_SEVERAL["device"]  # it is said of a single one, too
    if one_machine_each(records):
        several.pop("host", None)  # the device says it already
    metrics = [*(METRICS[name] for name in COLUMNS), *own_metrics(metrics_of(records))]
    taken = (*NAMES.values(), *IF_SEVERAL.values(), *(metric.title for metric in metrics))
    return NAMES | several | differing_options(records, taken)


def one_machine_each(records: list[Record]) -> bool:
    """Whether there are several devices, and each of them was the same machine in all records."""
    machines = {(record.device, record.environment.get("host")) for record in records}
    return 1 < len(machines) == len({device for device, _ in machines})


def metric_columns(records: list[Record]) -> list[Metric]:
    """Metrics that a finished run has: first those of COLUMNS, then those that only their measures' files know."""
    finished, known = [record for record in records if record.status == "finished"], metrics_of(records)
    wanted = [*(known[name] for name in COLUMNS if name in known), *own_metrics(known)]
    return [metric for metric in wanted if any(shows(metric, record) for record in finished)]


def shows(metric: Metric, record: Record) -> bool:
    """Whether a table with this record has a column for the metric."""
    name, unchanged = IF_CHANGED.get(metric.name, (metric.name, None))
    values = record.only_shown | record.metrics
    return metric.name in values and values.get(name, unchanged) != unchanged


def left_columns(names: Iterable[str], records: list[Record]) -> frozenset[int]:
    """Places of the names that are aligned to the left: words, and options that are not all numbers."""
    return frozenset(
        place
        for place, key in enumerate(names)
        if key in TEXT or is_option(key) and not all(_is_number(cell_name(key, record)) for record in records)
    )


def is_option(name: str) -> bool:
    """Whether a column of that name shows an option of methods."""
    return name not in NAMES and name not in IF_SEVERAL


def noisy(record: Record) -> bool:
    return record.metrics.get("latency_spread", 0) > NOISY


def _value(key: str, record: Record) -> Any:
    own = {"host": record.environment.get("host"), "device": record.device}
    return own[key] if key in own else record.params.get(key)


def cell_name(key: str, record: Record) -> str:
    """The text of the record's parameter or option of that name."""
    missing = NONE if is_option(key) else ""
    own = {name: _value(name, record) for name in OF_DEVICES}
    return str((record.params | own | option_texts(record)).get(key, missing))


def _name(key: str, record: Record, reused: str) -> str:
    """The text of the name as the table shows it, with a mark after the label of a reused run."""
    return cell_name(key, record) + (reused if key == "label" and record.reused else "")


def _is_number(text: str) -> bool:
    return text in (NONE, "null") or re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", text) is not None


def cell(metric: Metric, record: Record) -> str:
    """The text of a metric of a record, with the marks that `legend` explains."""
    if metric.name in record.only_shown:
        return f"({metric.text(record.only_shown[metric.name])})"
    value = record.metrics.get(metric.name)
    if value is None:
        return NONE
    return metric.text(value) + "~" * (metric.name == "latency_ms" and noisy(record))


def best_rows(metric: Metric, rows: list[Record]) -> set[int]:
    """Places of the best rows among those that are compared with each other, unless all of these are as good."""
    common = [key for key in ("model", "batch_size", *IF_SEVERAL) if key not in OF_DEVICES or metric.per_machine]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, row in enumerate(rows):
        if metric.better and metric.name in row.metrics:
            groups.setdefault(tuple(_value(key, row) for key in common), []).append(place)
    best: set[int] = set()
    for members in groups.values():
        values = equal_terms([rows[place] for place in members])
        leader = (max if metric.better == HIGHER else min)(values, key=lambda metrics: metrics[metric.name])
        equal = {place for place, metrics in zip(members, values, strict=True) if tied(metrics, leader, metric)}
        best |= equal if len(equal) < len(members) else set()
    return best


def tied(ours: Mapping[str, float], theirs: Mapping[str, float], metric: Metric) -> bool:
    """Whether a metric does not tell two runs apart.

    It does not if their values look alike, because a winner by digits that nobody sees would confuse, or if the
    intervals of their times overlap. The intervals of accuracies do not count: both runs are scored on the same images,
    so that an overlap says nothing.

    Args:
        ours: Metrics of one run.
        theirs: Metrics of the other run.
        metric: Metric to compare by, which both runs have.
    """
    if metric.text(ours[metric.name]) == metric.text(theirs[metric.name]):
        return True
    if not metric.per_machine or not metric.bounds or not {*metric.bounds} <= ours.keys() & theirs.keys():
        return False
    return ours[metric.low] <= theirs[metric.high] and theirs[metric.low] <= ours[metric.high]


def unfinished(records: list[Record]) -> list[str]:
    """A line for each run that did not finish, with the reason."""
    return [f"{record.status}: {record.label}: {record.reason}" for record in records if record.status != "finished"]


def legend(records: list[Record]) -> list[str]:
    """Lines that explain the marks in the table, except the mark of the best."""
    few = sorted(
        {
            images
            for record in records
            if (images := (record.config.get("measure", {}).get("accuracy") or {}).get("images"))
        }
    )
    return [
        *(f"accuracy on {images} images, spread over the classes" for images in few),
        *[NOISY_LEGEND] * any(map(noisy, records)),
        *[HEAT_LEGEND] * any(HEAT.name in record.metrics for record in records),
        *[DISTURBED_LEGEND] * any(record.disturbed for record in records),
        *[EMULATED_LEGEND] * any(record.emulated for record in records),
        *dict.fromkeys(f"faster: {r.notes['speedup']}" for r in records if r.device != LOCAL and "speedup" in r.notes),
        *[REUSED_LEGEND] * any(record.reused for record in records),
    ]


def markdown_table(records: list[Record]) -> str:
    """The table as Markdown, with a line for each run that did not finish."""
    shown = table(records)
    return markdown(replace(shown, notes=(*shown.notes, *unfinished(records))))


def latex_table(records: list[Record]) -> str:
    """The table as LaTeX for papers, in which no mark says that a run was measured earlier."""
    return latex(table(records, reused=""))


def csv_table(records: list[Record]) -> str:
    """Every parameter, differing option and metric of every run as CSV, unrounded."""
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
        device = {"device": record.device} if "device" in params else {}
        writer.writerow({**how, **record.params, **device, **texts, **record.metrics})
    return out.getvalue()
