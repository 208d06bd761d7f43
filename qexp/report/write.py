"""All files of a report, from runs: tables, pictures, and the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qexp.files import not_writable
from qexp.report.axes import BENEFITS, COSTS, benefits, costs, default_benefit
from qexp.report.page import write_page
from qexp.report.plot import accuracy_plot, bits_plots, latency_plots
from qexp.report.render import markdown
from qexp.report.runs import Run, grouped
from qexp.report.seeds import TITLE, seeds_table
from qexp.report.table import csv_table, latex_table, markdown_table
from qexp.report.verdict import Verdict, as_text, verdicts
from qexp.types import Record, UserError, nearest

FORMATS = ("md", "csv", "tex", "html", "png", "svg")
PICTURES = ("png", "svg")


@dataclass(frozen=True)
class Style:
    """formats: of FORMATS; points: percentage points of top-1 below fp32 that the verdict accepts; x, y: metrics that are drawn, empty for
    the usual ones; group: names whose values part the tables; lines: whether pictures join runs by their bits, which
    a search does not go through in order."""

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
    """markdown: tables and verdict; files: what was written."""

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
    """chosen: the conditions that the runs were filtered by; preface: Markdown before the tables; named: the runs as tables for people call
    them, where that is not as they are. Errors: UserError where the folder cannot be written to."""
    groups = parts(named or runs, style.group)
    found = verdicts(runs, style.points)
    tables, words = by_group(groups, markdown_table, "## {}\n\n"), [f"## Verdict\n\n{as_text(found)}"] if found else []
    records = [run.record for run in runs]
    seeds = seeds_table(records)
    of_seeds = [f"## {TITLE}\n\n{markdown(seeds)}"] if seeds else []
    whole = preface + "\n\n".join([*tables, *of_seeds, *words])
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
    """The metrics that are drawn: those asked for, the usual ones, or any that the runs have."""
    cost, benefit = next(iter(costs(runs)), None), default_benefit(runs) or next(iter(benefits(runs)), None)
    return style.x or (cost.name if cost else COSTS[0]), style.y or (benefit.name if benefit else BENEFITS[0])


def parts(runs: Sequence[Run], names: Sequence[str]) -> dict[str, list[Record]]:
    """Records by what they have in common, as a title; all of them where nothing parts them."""
    found = {}
    for values, members in grouped([*runs], names).items():
        title = ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
        found[title] = [run.record for run in members]
    return found


def by_group(groups: dict[str, list[Record]], write: Callable[[list[Record]], str], head: str) -> list[str]:
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
