"""Combines the runs that differ in nothing but their seed into one row, with mean and standard deviation."""

from __future__ import annotations

import re
import statistics
from typing import Any

from qexp.metrics import Metric
from qexp.records import Record
from qexp.report.render import NONE, Table
from qexp.report.table import cell_name, left_columns, metric_columns, name_columns

TITLE = "Mean ± standard deviation over seeds"


def seeds_table(records: list[Record]) -> Table | None:
    """Make a table with one row for all seeds of a run. None if no two finished records differ in their seed alone."""
    names = {key: title for key, title in name_columns(records).items() if key != "seed"}
    groups: dict[tuple[str, ...], dict[Any, Record]] = {}
    for record in records:  # if a seed ran again, its last record counts
        if record.status == "finished":
            groups.setdefault(tuple(cell_name(key, record) for key in names), {})[record.params.get("seed")] = record
    if max(map(len, groups.values()), default=0) < 2:
        return None
    metrics = metric_columns(records)
    rows = (
        (*name, str(len(seeds)), *(spread(values_of(metric, seeds), metric) for metric in metrics))
        for name, seeds in groups.items()
    )
    titles = (*names.values(), "seeds", *(metric.title for metric in metrics))
    return Table(titles, tuple(rows), left=left_columns(names, records), title=TITLE)


def values_of(metric: Metric, seeds: dict[Any, Record]) -> list[float]:
    return [record.metrics[metric.name] for record in seeds.values() if metric.name in record.metrics]


def spread(values: list[float], metric: Metric) -> str:
    """Format values as `mean ± s`, or as the mean alone if all of them look alike.

    Here s is the sample standard deviation (n - 1), with as many decimals as the mean.
    """
    if not values:
        return NONE
    mean = metric.text(statistics.fmean(values))
    if len({*map(metric.text, values)}) == 1:
        return mean
    # Every form of a metric is a number with or without a unit, so that this always matches.
    number, unit = re.fullmatch(r"([-\d.]+)(.*)", mean).groups()  # type: ignore[union-attr]
    deviation = float(metric.text(statistics.stdev(values)).removesuffix(unit))
    return f"{number} ± {deviation:.{len(number.partition('.')[2])}f}{unit}"
