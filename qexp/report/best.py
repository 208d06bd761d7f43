"""What a search found: its Pareto set, which is shown beside the table of all trials.

A trial is in that set if no other trial is at least as good in every objective and better in one of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from qexp.files import write_json
from qexp.metrics import Metric, metrics_of
from qexp.records import Record
from qexp.report.render import NONE, Table, markdown

MARK = " ◆"
LEGEND = "◆ in the Pareto set of the search"
ARROWS = {"maximize": "↑", "minimize": "↓"}


@dataclass(frozen=True)
class Best:
    """One trial of the Pareto set.

    Attributes:
        number: Number of the trial.
        settings: Values that the search chose, by key, as on the command line.
        values: Values of the objectives, in their order.
        key: Key of the trial's record.
    """

    number: int
    settings: Mapping[str, str]
    values: list[float]
    key: str


@dataclass(frozen=True)
class Search:
    """The result of a search.

    Attributes:
        study: Name of the study in Optuna's storage.
        storage: Where Optuna keeps the study.
        objectives: Directions (`minimize` or `maximize`) by the names of metrics.
        ended: Numbers of trials by how they ended.
        best: The Pareto set.
    """

    study: str
    storage: str
    objectives: dict[str, str]
    ended: dict[str, int]
    best: list[Best]

    def write(self, sweep: Path) -> None:
        write_json(sweep / "search.json", asdict(self))

    @classmethod
    def read(cls, sweep: Path) -> Search | None:
        """Read the result from a sweep's folder. None if the sweep was not a search."""
        try:
            values = json.loads((sweep / "search.json").read_text())
        except FileNotFoundError:
            return None
        return cls(**{**values, "best": [Best(**best) for best in values["best"]]})

    def marked(self, records: list[Record]) -> list[Record]:
        """The same records, with a mark at the labels of those in the Pareto set."""
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
        """Make the table of the Pareto set, with the best trial by the first objective first.

        Args:
            records: Records of the trials, which describe their metrics.
        """
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
    """Format with more digits than other tables have, because neighbours on a front differ by little."""
    return metric.text(value) if metric.form == "percent" else f"{value:.5g}"
