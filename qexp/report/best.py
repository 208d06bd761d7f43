"""What a search found: the trials that no other is better than in every objective, beside the table of all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from qexp.files import write_json
from qexp.metrics import Metric, metrics_of
from qexp.report.render import NONE, Table, markdown
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

    def table(self, records: list[Record]) -> Table:
        """The best of the first objective first. records: of the trials, which know their metrics."""
        known = metrics_of(records)
        objectives = [known.get(name, Metric(name, "")) for name in self.objectives]
        titles = [
            f"{m.title or m.name} {ARROWS[way]}" for m, way in zip(objectives, self.objectives.values(), strict=True)
        ]
        keys = list(dict.fromkeys(key for best in self.best for key in best.settings))
        sign = -1 if next(iter(self.objectives.values())) == "maximize" else 1
        rows = (
            (
                str(best.number),
                *(best.settings.get(key, NONE) for key in keys),
                *(exact(value, metric) for value, metric in zip(best.values, objectives, strict=True)),
            )
            for best in sorted(self.best, key=lambda best: (sign * best.values[0], best.number))
        )
        where = f"Study {self.study} in {self.storage}"
        words = frozenset(range(1 + len(keys)))
        return Table(("trial", *keys, *titles), tuple(rows), left=words, title=self.title, caption=where)

    def markdown(self, records: list[Record]) -> str:
        return f"{self.title}:\n\n{markdown(self.table(records))}\n\nAll trials; {LEGEND}:\n\n"


def exact(value: float, metric: Metric) -> str:
    """To more digits than other tables show: neighbours on a front differ by little."""
    return metric.text(value) if metric.form == "percent" else f"{value:.5g}"
