"""Writes all files of a report: tables, pictures and the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qexp.files import not_writable
from qexp.records import Record
from qexp.report.axes import BENEFITS, COSTS, benefits, costs, default_benefit
from qexp.report.matrix import TITLE as DEVICES
from qexp.report.matrix import device_matrix
from qexp.report.page import write_page
from qexp.report.plot import accuracy_plot, bits_plots, latency_plots
from qexp.report.render import markdown
from qexp.report.runs import Run, grouped
from qexp.report.seeds import TITLE, seeds_table
from qexp.report.table import csv_table, latex_table, markdown_table
from qexp.report.verdict import Verdict, as_text, verdicts
from qexp.types import UserError, nearest

FORMATS = ("md", "csv", "tex", "html", "png", "svg")
PICTURES = ("png", "svg")


@dataclass(frozen=True)
class Style:
    """What a report contains.

    Attributes:
        formats: Formats to write, among FORMATS.
        points: Percentage points of top-1 below fp32 that the verdict accepts.
        x: Metric of the horizontal axis of plots, or empty for the usual ones.
        y: Metric of the vertical axis of plots, or empty for the usual one.
        group: Names whose values split the tables.
        lines: Whether pictures join runs by their bits. The runs of a search do not go through bits in order.

    Raises:
        UserError: A format is unknown, or `points` is not a number of at least 0.
    """

    formats: tuple[str, ...] = FORMATS
    points: float = 1.0
    x: str = ""
    y: str = ""
    group: tuple[str, ...] = ()
    lines: bool = True

    def __post_init__(self) -> None:
        for name in self.formats:
            if name not in FORMATS:
                raise UserError(f"The report has no format {name!r}. {nearest(str(name), FORMATS)}")
        if not isinstance(self.points, int | float) or not self.points >= 0:
            raise UserError(
                f"points={self.points} is no number of percentage points; give 0 or more, such as points=0.5"
            )


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        markdown: Tables and verdicts as Markdown.
        verdicts: What the runs show, in words.
        files: Files written.
    """

    markdown: str
    verdicts: list[Verdict]
    files: list[Path]


def write_report(
    runs: Sequence[Run],
    folder: Path,
    title: str,
    style: Style,
    chosen: str = "",
    preface: str = "",
    named: Sequence[Run] = (),
) -> Report:
    """Write the files of a report.

    Args:
        runs: Runs to report on.
        folder: Folder to write to.
        title: Title of the page.
        style: What the report contains.
        chosen: Conditions that the runs were filtered by.
        preface: Markdown before the tables.
        named: The same runs with the labels that they have in results.md and results.tex, or empty for `runs`.

    Raises:
        UserError: The folder cannot be written to.
    """
    groups = parts(named or runs, style.group)
    found = verdicts(runs, style.points)
    tables, words = by_group(groups, markdown_table, "## {}\n\n"), [f"## Verdict\n\n{as_text(found)}"] if found else []
    records = [run.record for run in runs]
    seeds = seeds_table(records)
    of_seeds = [f"## {TITLE}\n\n{markdown(seeds)}"] if seeds else []
    matrix = device_matrix(records)
    of_devices = [f"## {DEVICES}\n\n{markdown(matrix)}"] if matrix else []
    whole = preface + "\n\n".join([*tables, *of_devices, *of_seeds, *words])
    texts = {
        "results.md": whole,
        "results.csv": csv_table(records),
        "results.tex": "\n".join(by_group(groups, latex_table, "% {}\n")),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / name for name in texts if Path(name).suffix[1:] in style.formats]
        for file in files:
            file.write_text(texts[file.name])
        files += pictures(records, folder, style)
        if "html" in style.formats:
            page = folder / "report.html"
            x, y = axes_of([*runs], style)
            write_page(runs, found, page, title, x, y, next(iter(style.group), ""), chosen)
            files.append(page)
    except OSError as error:
        raise not_writable(folder, error) from error
    return Report(whole, found, files)


def axes_of(runs: list[Run], style: Style) -> tuple[str, str]:
    """Choose the metrics to draw: those asked for, the usual ones, or any that the runs have."""
    cost, benefit = next(iter(costs(runs)), None), default_benefit(runs) or next(iter(benefits(runs)), None)
    return style.x or (cost.name if cost else COSTS[0]), style.y or (benefit.name if benefit else BENEFITS[0])


def parts(runs: Sequence[Run], names: Sequence[str]) -> dict[str, list[Record]]:
    """Split the runs by their values of the names.

    Returns:
        Records by a title that says what they have in common. Without names, all records have an empty title.
    """
    found = {}
    for values, members in grouped([*runs], names).items():
        title = ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
        found[title] = [run.record for run in members]
    return found


def by_group(groups: dict[str, list[Record]], write: Callable[[list[Record]], str], head: str) -> list[str]:
    """Write each group with `write`. Its title, if it has one, takes the place of `{}` in `head`."""
    return [(head.format(title) if title else "") + write(records) for title, records in groups.items()]


def pictures(records: list[Record], folder: Path, style: Style) -> list[Path]:
    formats = [name for name in PICTURES if name in style.formats]
    if not formats:
        return []
    costs = (style.x,) if style.x else ("size_mb", "latency_ms")
    drawn = accuracy_plot(records, folder / "accuracy.png", costs, style.y, formats)
    return [
        *drawn,
        *(bits_plots(records, folder, formats) if style.lines else []),
        *latency_plots(records, folder, formats),
    ]
