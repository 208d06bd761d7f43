"""`python -m qexp.report`: what it writes, what it prints, and its messages."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from qexp.report.__main__ import main
from qexp.report.render import latex_text
from qexp.report.table import latex_table
from qexp.tracking.store import write_record
from tests.report.support import FP32, HALF, INT8, record

Printed = pytest.CaptureFixture[str]


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    rows = [FP32, INT8, HALF, record("dynamic int8", top1=0.8, top1_drop=0.1, size_mb=2.0, latency_ms=0.9)]
    rows.append(record("bad", status="unsupported", reason="no kernels"))
    for index, row in enumerate(rows):
        write_record(replace(row, config={"seed": 0}), tmp_path / "sweeps" / "monday" / str(index))
    return tmp_path


def written(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_everything_of_the_latest_sweep(outputs: Path, capsys: Printed) -> None:
    assert main([f"outputs={outputs}"]) == 0
    folder = outputs / "reports" / "monday"
    assert written(folder) == [
        "accuracy.png",
        "accuracy.svg",
        "report.html",
        "results.csv",
        "results.md",
        "results.tex",
    ]
    printed = capsys.readouterr().out
    assert "5 runs" in printed and "unsupported: vgg · bad: no kernels" in printed and "Written to" in printed
    assert "Fastest within 1 point of fp32 (90.00 %): static int8 on eager, 1.00 ms" in printed
    assert "- Fastest within 1 point of fp32 (90.00 %): static int8" in (folder / "results.md").read_text()
    assert len(list(csv.DictReader((folder / "results.csv").open()))) == 5
    assert Image.open(folder / "accuracy.png").size[0] > 500
    assert ElementTree.parse(folder / "accuracy.svg").getroot().tag.endswith("svg")


def test_what_was_asked_for(outputs: Path, tmp_path: Path, capsys: Printed) -> None:
    to = tmp_path / "elsewhere"
    words = ["sweep=monday", "where=top1>0.85", "x=size_mb", "y=top1", "format=md,html", "group=label", "points=0.5"]
    assert main([f"outputs={outputs}", f"to={to}", *words]) == 0
    assert written(to) == ["report.html", "results.md"]
    printed, markdown = capsys.readouterr().out, (to / "results.md").read_text()
    assert "label half: 1 run" in printed and "dynamic" not in printed
    assert re.findall(r"^## (.+)$", markdown, re.M) == ["label fp32", "label static int8", "label half", "Verdict"]
    assert "within 0.5 points" in markdown
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', (to / "report.html").read_text(), re.S
    )
    assert found
    data = json.loads(found[1])
    assert (data["x"], data["y"], data["colour"], len(data["rows"])) == ("size_mb", "top1", "label", 3)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("swep=monday", "'swep=monday' is no option.*did you mean 'sweep'"),
        ("html", "'html' is no option"),
        ("sweep=mondy", "no sweep=mondy in .* did you mean 'monday'"),
        ("where=modle=vgg", "no run has a 'modle'. did you mean 'model'"),
        ("where=model=resnet", "No run of 5 is left by where='model=resnet'"),
        ("x=latency", "x: no run has a 'latency'. did you mean 'latency_ms'"),
        ("x=memory_mb", "x: no run has a 'memory_mb'"),
        ("group=metod", "group: no run has a 'metod'. did you mean 'method'"),
        ("format=htm", "no format 'htm'. did you mean 'html'"),
        ("points=few", "points=few is no number"),
        ("points=-1", "is no number of percentage points"),
        ("to=/dev/null/x", "Cannot write /dev/null/x"),
    ],
)
def test_what_cannot_be(word: str, message: str, outputs: Path, capsys: Printed) -> None:
    assert main([f"outputs={outputs}", word]) == 1
    printed = capsys.readouterr()
    assert re.search(f"^error: .*{message}", printed.err) and not printed.out


def test_help(capsys: Printed) -> None:
    assert main(["--help"]) == 0
    assert "qexp report" in capsys.readouterr().out


def test_the_table_in_latex() -> None:
    lines = latex_table([FP32, INT8, HALF]).splitlines()
    assert r"\begin{tabular}{lllrrrrrrr}" in lines
    rows = [line.removesuffix(r" \\").split(" & ") for line in lines if line.endswith(r"\\")]
    assert {len(row) for row in rows} == {10}
    assert rows[0][:5] == ["model", "method", "engine", "batch", r"top-1 \%"]
    assert (
        rows[2][1] == "static int8" and rows[2][4] == "89.12" and rows[2][rows[0].index("size MB")] == r"\textbf{2.50}"
    )


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("a_b & 50 %", r"a\_b \& 50 \%"),
        ("1.0~", r"1.0\textasciitilde{}"),
        ("\\{}", r"\textbackslash{}\{\}"),
        ("–", "--"),
    ],
)
def test_special_characters_of_latex(text: str, safe: str) -> None:
    assert latex_text(text) == safe


def test_rows_of_a_csv_are_those_of_the_report(outputs: Path) -> None:
    assert main([f"outputs={outputs}", "format=csv", "where=status=finished and latency_ms<2"]) == 0
    text = (outputs / "reports" / "monday" / "results.csv").read_text()
    assert [row["label"] for row in csv.DictReader(io.StringIO(text))] == ["static int8", "dynamic int8"]
