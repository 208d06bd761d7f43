"""report.html: one file with the data, the libraries and the styles in it, so that it opens anywhere without a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qexp.report.page_data import page_data
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
    """x, y: metrics of the plot's axes at first; colour: the name that its colours tell apart, or the best one; where: how the runs were
    chosen."""
    from jinja2 import (
        Environment,
        FileSystemLoader,
        StrictUndefined,
    )  # these two are imported only where a page is written
    from plotly.offline import get_plotlyjs

    data = page_data(runs, file.parent) | {"x": x, "y": y, "colour": colour}
    templates = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined)
    tables = package_folder("itables") / "html"
    scripts = "\n".join((FOLDER / name).read_text() for name in SCRIPTS)
    text = templates.get_template("report.html.j2").render(
        title=title, where=where, created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), runs=len(runs), verdicts=verdicts,
        caution=caution(verdicts), style=(FOLDER / "style.css").read_text(), scripts=scripts,
        plotly=get_plotlyjs(), data=as_script(data), table_style=(tables / "dt_bundle.css").read_text(),
        table_script=(tables / "dt_bundle.js").read_text(),
    )  # fmt: skip
    file.write_text(text)


def package_folder(name: str) -> Path:
    """Without importing the package."""
    spec = find_spec(name)
    assert spec and spec.origin
    return Path(spec.origin).parent


def as_script(data: Any) -> str:
    """JSON that nothing in it can end the script element of."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
