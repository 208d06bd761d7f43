"""Writes report.html, a single file that holds its data, libraries and styles, so that it opens without a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qexp.report.matrix import TITLE, device_matrix
from qexp.report.page_data import page_data
from qexp.report.render import html_table
from qexp.report.runs import Run
from qexp.report.verdict import Verdict, caution

FOLDER = Path(__file__).parent / "page"
SCRIPTS = ("data.js", "front.js", "theme.js", "pareto.js", "curves.js", "layers.js", "run.js", "table.js", "page.js")


def write_page(
    runs: Sequence[Run],
    verdicts: Sequence[Verdict],
    file: Path,
    title: str,
    x: str,
    y: str,
    colour: str = "",
    where: str = "",
) -> None:
    """Write the page.

    Args:
        runs: Runs to show.
        verdicts: What the runs show, in words.
        file: File to write.
        title: Title of the page.
        x: Metric of the plot's horizontal axis when the page opens.
        y: Metric of the plot's vertical axis when the page opens.
        colour: Name whose values have different colours, or empty to let the page choose.
        where: Conditions by which the runs were chosen.
    """
    # Only commands that write a page import these two.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    data = page_data(runs, file.parent) | {"x": x, "y": y, "colour": colour}
    templates = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined)
    tables = package_folder("itables") / "html"
    scripts = "\n".join((FOLDER / name).read_text() for name in SCRIPTS)
    matrix = device_matrix([run.record for run in runs])
    text = templates.get_template("report.html.j2").render(
        title=title, where=where, created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), runs=len(runs),
        verdicts=verdicts, caution=caution(verdicts), style=(FOLDER / "style.css").read_text(), scripts=scripts,
        matrix=html_table(matrix) if matrix else "", matrix_title=TITLE, plotly=get_plotlyjs(),
        data=as_script(data), table_style=(tables / "dt_bundle.css").read_text(),
        table_script=(tables / "dt_bundle.js").read_text(),
    )  # fmt: skip
    file.write_text(text)


def package_folder(name: str) -> Path:
    """The folder of a package, found without importing the package."""
    spec = find_spec(name)
    assert spec and spec.origin
    return Path(spec.origin).parent


def as_script(data: Any) -> str:
    """The data as JSON for a script element, which no text in the data can end."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
