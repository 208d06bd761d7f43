"""What a program does with the table: the same cells as elsewhere, the front, the numbers, a report."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from qexp.api.comparison import Comparison
from qexp.report.runs import Run
from qexp.types import UserError
from tests.report.support import FP32, HALF, INT8, record, table_of

WORSE = record("dynamic <int8>", top1=0.88, top1_drop=0.02, size_mb=2.5, size_ratio=4.0, latency_ms=2.0)
FAILED = record("static int4", status="unsupported", reason="no <kernels> & no time")


def comparison(*records: object) -> Comparison:
    return Comparison(tuple(Run(each, Path(f"{place}")) for place, each in enumerate(records)), Path("sweep"), 1.0)  # type: ignore[arg-type]


def test_a_notebook_shows_the_cells_of_the_table() -> None:
    records = [FP32, INT8, WORSE, HALF]
    page = ElementTree.fromstring(f"<div>{comparison(*records, FAILED)._repr_html_().replace('<br>', '')}</div>")
    titles, cells, best = table_of([*records, FAILED])
    found = [[cell for cell in row] for row in page.iter("tr")]
    assert [cell.text for cell in found[0]] == titles
    assert [["".join(cell.itertext()) for cell in row] for row in found[1:]] == cells
    assert [[cell.find("b") is not None for cell in row] for row in found[1:]] == best
    assert "unsupported: vgg · static int4: no <kernels> & no time" in "".join(page.itertext())


def test_the_front_leaves_out_what_another_run_beats() -> None:
    table = comparison(FP32, INT8, WORSE, HALF, FAILED)
    labels = {cost: [each.params["label"] for each in table.front(cost).records] for cost in ("size_mb", "latency_ms")}
    assert labels == {"size_mb": ["static int8", "half"], "latency_ms": ["fp32", "static int8"]}
    assert len(table) == 5 and len(table.front("size_mb")) == 2
    for cost, benefit in (("top1", "size_mb"), ("latency_ms", "size_mb"), ("speedup", "top1")):
        with pytest.raises(UserError, match="of a cost less is better, and of a benefit more"):
            table.front(cost, benefit)
    with pytest.raises(UserError, match="No run has the metric 'latency'. did you mean 'latency_ms'"):
        table.front("latency")


def test_numbers_are_unrounded_and_files_are_written(tmp_path: Path) -> None:
    table = comparison(FP32, INT8)
    frame = table.to_pandas()
    assert frame.top1.tolist() == [0.90, 0.8912] and frame.label.tolist() == ["fp32", "static int8"]
    assert np.isnan(frame.speedup[0])
    assert "| vgg | static int8 |" in table.report(tmp_path / "new" / "table.md").read_text()
    assert (tmp_path / "new").iterdir() and [file.name for file in (tmp_path / "new").iterdir()] == ["table.md"]
    with pytest.raises(UserError, match="ends in '.htm'. did you mean 'html'"):
        table.report(tmp_path / "table.htm")


def test_a_console_shows_the_table_the_failures_and_the_verdict() -> None:
    text = str(comparison(FP32, INT8, FAILED))
    assert "static int8" in text and "no <kernels> & no time" in text and "Records and tables: sweep" in text
    assert "Smallest within 1 point of fp32" in text
