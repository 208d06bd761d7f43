"""Rows that differ in nothing but their seed, as one: mean and standard deviation."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from qexp.report.options import NONE
from qexp.report.table import COLUMNS, Column, cell_name, names_of, shows, text_titles
from qexp.types import Record

TITLE = "Mean ± standard deviation over seeds"


@dataclass(frozen=True)
class Seeds:
    """titles and cells of a table with one row for all seeds of a run; text: titles of columns aligned to the left."""

    titles: list[str]
    cells: list[list[str]]
    text: set[str]

    @classmethod
    def of(cls, records: list[Record]) -> Seeds | None:
        """None where no two finished records differ in their seed alone."""
        rows = [record for record in records if record.status == "finished"]
        names = {key: title for key, title in names_of(records).items() if key != "seed"}
        groups: dict[tuple[str, ...], dict[Any, Record]] = {}
        for record in rows:  # of a seed that ran again, the last counts
            groups.setdefault(tuple(cell_name(key, record) for key in names), {})[record.params.get("seed")] = record
        if max(map(len, groups.values()), default=0) < 2:
            return None
        columns = [column for column in COLUMNS if any(shows(column, record) for record in rows)]

        def of_all(column: Column, seeds: dict[Any, Record]) -> str:
            return spread(
                [r.metrics[column.metric] for r in seeds.values() if column.metric in r.metrics], column.format
            )

        cells = [
            [*name, str(len(seeds)), *(of_all(column, seeds) for column in columns)] for name, seeds in groups.items()
        ]
        return cls([*names.values(), "seeds", *(column.title for column in columns)], cells, text_titles(records))

    def markdown(self) -> str:
        rule = "|".join(" --- " if title in self.text else " ---: " for title in self.titles)
        lines = [f"| {' | '.join(self.titles)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in self.cells)]
        return f"## {TITLE}\n\n" + "\n".join(lines)

    def rich_table(self) -> Table:
        shown = Table(title=TITLE, title_justify="left")
        for title in self.titles:
            shown.add_column(title, justify="left" if title in self.text else "right", overflow="fold")
        for row in self.cells:
            shown.add_row(*map(escape, row))
        return shown


def spread(values: list[float], shown: Callable[[float], str]) -> str:
    """`mean ± s`: s is the sample's standard deviation (n - 1), to the mean's last digit. The mean alone where all values look alike."""
    if not values:
        return NONE
    mean = shown(statistics.fmean(values))
    if len({*map(shown, values)}) == 1:
        return mean
    number, unit = re.fullmatch(r"([-\d.]+)(.*)", mean).groups()  # type: ignore[union-attr]  # as all formats of columns are
    deviation = float(shown(statistics.stdev(values)).removesuffix(unit))
    return f"{number} ± {deviation:.{len(number.partition('.')[2])}f}{unit}"
