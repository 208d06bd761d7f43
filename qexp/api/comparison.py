"""The result of qexp.compare and qexp.sweep: a table of runs, which a notebook shows."""

from __future__ import annotations

import html
import io
import os
import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from qexp.files import not_writable
from qexp.metrics import HIGHER, metrics_of
from qexp.records import Record
from qexp.report.axes import same
from qexp.report.pareto import pareto_front
from qexp.report.render import html_table, markdown, rich_table
from qexp.report.runs import Run, grouped, runs_of
from qexp.report.screen import show_verdicts
from qexp.report.table import csv_table, table, unfinished
from qexp.report.verdict import Verdict, verdicts
from qexp.report.write import FORMATS, Style, write_report
from qexp.types import UserError, nearest

if TYPE_CHECKING:
    from pandas import DataFrame

WIDE = 200  # characters of a line where a table is printed as text
FILES = {"html": "report.html", "md": "results.md", "csv": "results.csv", "tex": "results.tex"}


@dataclass(frozen=True, repr=False)
class Comparison:
    """Runs that were measured alike, one in each row. A notebook shows it as a table, and `print` as text.

    Attributes:
        runs: The runs, with their records. A record has all numbers, samples, the machine and the config.
        folder: Folder of the sweep: records, tables, pictures and `report.html`.
        points: Percentage points of top-1 that the verdict accepts to lose.

    Example:
        >>> table = qexp.compare([network, small], "pictures", batch_size=1)
        >>> table.to_pandas()[["label", "engine", "top1", "latency_ms", "speedup"]]
    """

    runs: tuple[Run, ...]
    folder: Path
    points: float

    @property
    def records(self) -> list[Record]:
        """The records of all runs, also of those that failed, in the order of the rows."""
        return [run.record for run in self.runs]

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """What the runs show, in sentences."""
        return verdicts(list(self.runs), self.points)

    def __len__(self) -> int:
        return len(self.runs)

    def to_pandas(self) -> DataFrame:
        """All parameters, differing options and metrics of all runs, unrounded, one run in each row.

        Metrics have the units of records: accuracies are fractions, `latency_ms` is milliseconds for one call,
        `size_mb` and `memory_mb` are 10⁶ bytes.

        Example:
            >>> table.to_pandas().sort_values("latency_ms").iloc[0].engine
            'openvino'
        """
        import pandas

        return pandas.read_csv(io.StringIO(csv_table(self.records)))

    def front(self, cost: str = "latency_ms", benefit: str = "top1") -> Comparison:
        """The runs of the Pareto front: no other run costs as little and gives as much, and is better in one of both.

        Runs are compared only with others of the same images, and times only with those of the same calls and machine.

        Args:
            cost: Metric of which less is better, such as `latency_ms`, `size_mb` or `memory_mb`.
            benefit: Metric of which more is better, such as `top1`.

        Raises:
            UserError: No run has such a metric.

        Example:
            >>> table.front(cost="size_mb")
        """
        known = metrics_of(self.records)
        for name in (cost, benefit):
            if not any(name in run.record.metrics for run in self.runs):
                raise UserError(f"No run has the metric {name!r}. {nearest(name, _having(self.records))}")
        if known[cost].better == HIGHER or known[benefit].better != HIGHER:
            raise UserError(
                f"front(cost={cost!r}, benefit={benefit!r}): of a cost less is better, and of a benefit more."
            )
        both = [run for run in self.runs if {cost, benefit} <= run.record.metrics.keys()]
        kept = set[Path]()
        for members in grouped(both, dict.fromkeys((*same(known[cost]), *same(known[benefit])))).values():
            values = [[run.record.metrics[name] for run in members] for name in (cost, benefit)]
            kept |= {members[place].folder for place in pareto_front(*values)}
        return replace(self, runs=tuple(run for run in self.runs if run.folder in kept))

    def report(self, file: str | os.PathLike[str]) -> Path:
        """Write a report on the runs to a file.

        Args:
            file: `.html` is a page of 6 MB that works offline: accuracy against cost with intervals, a table to sort
                and filter, layers, operators, machine. `.md`, `.csv` and `.tex` hold the table.

        Returns:
            The file.

        Raises:
            UserError: The ending is unknown, or the file cannot be written.

        Example:
            >>> table.report("report.html")
            PosixPath('report.html')
        """
        target = Path(file)
        ending = target.suffix.removeprefix(".")
        if ending not in FILES:
            raise UserError(f"{file} ends in {target.suffix!r}. {nearest(ending, FILES)}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                style = Style(tuple(each for each in FORMATS if each == ending), self.points)
                write_report(list(self.runs), Path(folder), f"sweep {self.folder.name}", style)
                os.replace(Path(folder) / FILES[ending], target)
        except OSError as error:
            raise not_writable(target, error) from error
        return target

    def __str__(self) -> str:
        out = Console(file=io.StringIO(), width=WIDE)
        if self._finished:
            out.print(rich_table(table(self.records), WIDE))
        for line in unfinished(self.records):
            out.print(line, highlight=False, markup=False)
        show_verdicts(out, self.verdicts)
        out.print(f"\n{self._place}", highlight=False, markup=False)
        return str(out.file.getvalue())  # type: ignore[attr-defined]

    __repr__ = __str__

    @property
    def _finished(self) -> bool:
        return any(record.status == "finished" for record in self.records)

    @property
    def _place(self) -> str:
        page = self.folder / "report.html"
        return f"All of it in a browser: {page}" if page.exists() else f"Records and tables: {self.folder}"

    def _repr_html_(self) -> str:
        lines = [*unfinished(self.records)]
        said = "".join(
            f"<p><b>{html.escape(verdict.title)}</b><br>{'<br>'.join(map(html.escape, verdict.sentences))}</p>"
            for verdict in self.verdicts
        )
        shown = html_table(table(self.records)) if self._finished else ""
        failed = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
        return f"{shown}{failed}{said}<p><small>{html.escape(self._place)}</small></p>"

    def _repr_markdown_(self) -> str:
        return "\n\n".join([markdown(table(self.records)), *unfinished(self.records)])


def _having(records: list[Record]) -> list[str]:
    return sorted({name for record in records for name in record.metrics})


def comparison(folder: Path) -> Comparison:
    """Read the runs of a sweep's folder.

    Raises:
        UserError: None of them finished. The message has their reasons.
    """
    runs = tuple(runs_of(folder))
    if not any(run.record.status == "finished" for run in runs):
        reasons = "\n".join(dict.fromkeys(unfinished([run.record for run in runs])))
        raise UserError(f"No run finished.\n{reasons}")
    return Comparison(runs, folder, runs[0].record.config["report"]["points"])
