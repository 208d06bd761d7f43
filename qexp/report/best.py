"""What a search found: the trials that no other is better than in every objective, beside the table of all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from qexp.files import write_json
from qexp.report.table import COLUMNS, NONE, percent
from qexp.types import Record

MARK = " ◆"
LEGEND = "◆ in the Pareto set of the search"
ARROWS = {"maximize": "↑", "minimize": "↓"}


@dataclass(frozen=True)
class Best:
    """One trial of the Pareto set. settings: as on the command line; values: of the objectives; key: its record's."""

    number: int
    settings: Mapping[str, str]
    values: list[float]
    key: str


@dataclass(frozen=True)
class Search:
    """study, storage: where Optuna keeps it; objectives: metrics and their directions; ended: trials by how they ended."""

    study: str
    storage: str
    objectives: dict[str, str]
    ended: dict[str, int]
    best: list[Best]

    def write(self, sweep: Path) -> None:
        write_json(sweep / "search.json", asdict(self))

    @classmethod
    def read(cls, sweep: Path) -> Search | None:
        """That of a sweep's folder; None where it was no search."""
        try:
            values = json.loads((sweep / "search.json").read_text())
        except FileNotFoundError:
            return None
        return cls(**{**values, "best": [Best(**best) for best in values["best"]]})

    def marked(self, records: list[Record]) -> list[Record]:
        """The same with a mark at the labels of the best."""
        keys = {best.key for best in self.best}
        named = {
            True: lambda r: replace(r, params={**r.params, "label": f"{r.params.get('label', '')}{MARK}"}),
            False: lambda r: r,
        }
        return [named[record.key in keys](record) for record in records]

    @property
    def title(self) -> str:
        ended = ", ".join(f"{count} {how}" for how, count in self.ended.items() if count)
        what = "Pareto set" if len(self.objectives) > 1 else "Best"
        return f"{what} of {sum(self.ended.values())} trials ({ended or 'none'})"

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Titles and cells, the best of the first objective first."""
        known = {column.metric: column for column in COLUMNS}
        titles = [
            f"{known[name].title if name in known else name} {ARROWS[way]}" for name, way in self.objectives.items()
        ]
        formats = [
            percent if name in known and known[name].format is percent else "{:.5g}".format for name in self.objectives
        ]
        keys = list(dict.fromkeys(key for best in self.best for key in best.settings))
        sign = -1 if next(iter(self.objectives.values())) == "maximize" else 1
        rows = sorted(self.best, key=lambda best: (sign * best.values[0], best.number))
        cells = [
            [
                str(b.number),
                *(b.settings.get(key, NONE) for key in keys),
                *(f(v) for f, v in zip(formats, b.values, strict=True)),
            ]
            for b in rows
        ]
        return ["trial", *keys, *titles], cells

    def rich_table(self) -> Table:
        titles, cells = self.table()
        where = f"Study {self.study} in {self.storage}"
        shown = Table(title=self.title, title_justify="left", caption=where, caption_justify="left")
        for title in titles:
            shown.add_column(title, justify="right" if title[-1] in ARROWS.values() else "left", overflow="fold")
        for row in cells:
            shown.add_row(*map(escape, row))
        return shown

    def markdown(self) -> str:
        titles, cells = self.table()
        lines = [
            f"| {' | '.join(titles)} |",
            "|" + " --- |" * len(titles),
            *(f"| {' | '.join(row)} |" for row in cells),
        ]
        return "\n".join([f"{self.title}:\n", *lines, f"\nAll trials; {LEGEND}:\n\n"])
