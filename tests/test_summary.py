"""What a sweep leaves beside its records: the report, in the formats that were asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qexp.jobs import summary
from tests.commands import NOWHERE, RunCommand

pytestmark = pytest.mark.integration


def left(tmp_path: Path) -> set[str]:
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    return {file.name for file in sweep.iterdir() if file.is_file() and not file.name.startswith(".")} - {
        "multirun.yaml"
    }


def test_a_sweep_ends_with_its_report(run: RunCommand, tmp_path: Path) -> None:
    code, printed = run("-m", "method=static,half", "tracking=none", "report.points=1", *NOWHERE)
    assert code == 1, "all rows failed, and are reported"
    assert left(tmp_path) == {"results.md", "results.csv", "results.tex", "report.html"}
    assert "All of it in a browser: " in printed and "report.html" in printed


@pytest.mark.thorough
def test_formats_are_chosen(run: RunCommand, tmp_path: Path) -> None:
    run("-m", "method=static,half", "tracking=none", "report.formats=[csv]", *NOWHERE)
    assert left(tmp_path) == {"results.csv"}


def test_options_that_mean_nothing_end_the_program_before_it_computes(run: RunCommand, tmp_path: Path) -> None:
    for option, option_suffix in (
        ("report.formats=[htm]", "no format 'htm'. did you mean 'html'"),
        ("report.points=-1", "points=-1 is no number"),
    ):
        code, printed = run("-m", "method=static,half", "tracking=none", option, *NOWHERE)
        assert code == 1 and "error: " in printed and option_suffix in printed
        assert not (tmp_path / "outputs").exists() or not list((tmp_path / "outputs").rglob("record.json"))


def test_the_libraries_of_the_page_are_imported_where_one_is_written() -> None:
    heavy = ("plotly", "itables", "jinja2")
    code = f"import sys, qexp.jobs.summary, qexp.report.__main__; print([m for m in {heavy} if m in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_a_heat_that_fails_costs_nobody_the_table(
    run: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise KeyError("an engine that is gone")

    monkeypatch.setattr(summary, "run_heats", fails)
    code, printed = run("-m", "method=static,half", "tracking=none", "report.formats=[csv]", *NOWHERE)
    assert code == 1 and "no heat was run: 'an engine that is gone'" in printed and left(tmp_path) == {"results.csv"}
