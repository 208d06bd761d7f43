"""Pictures of a sweep, read back from the axes they are drawn on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qexp.report.plot import _curves, accuracy_plot, latency_plots
from qexp.types import Record
from tests.report.test_table import record


def timed(label: str, batch: int, mean: float, std: float, model: str = "vgg", size: int = 32) -> Record:
    made = record(label, batch=batch, model=model, latency_mean_ms=mean, latency_std_ms=std)
    made.params["image_size"] = size
    return made


SWEEP = [timed("fp32", 8, 16.0, 2.0), timed("fp32", 1, 2.0, 0.5), timed("static int8", 1, 0.5, 0.1), timed("static int8", 8, 4.0, 0.2)]


def test_curves_hold_mean_and_deviation_in_the_order_of_the_axis() -> None:
    (axes,) = _curves(SWEEP, "batch_size", "images per call").axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    drawn = {container.get_label(): container for container in axes.containers}
    assert set(drawn) == {"fp32 · eager", "static int8 · eager"}
    line, _, (bars,) = drawn["fp32 · eager"].lines
    np.testing.assert_allclose(line.get_xydata(), [[1, 2], [8, 16]])
    np.testing.assert_allclose([segment[:, 1] for segment in bars.get_segments()], [[1.5, 2.5], [14, 18]])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "8"]


def test_lines_are_told_apart_by_what_else_differs() -> None:
    rows = [*SWEEP, timed("fp32", 1, 8.0, 1.0, size=64), timed("fp32", 8, 60.0, 1.0, size=64)]
    (axes,) = _curves(rows, "batch_size", "").axes
    assert {c.get_label() for c in axes.containers} == {
        "fp32 · eager · image_size 32", "fp32 · eager · image_size 64", "static int8 · eager · image_size 32",
    }  # fmt: skip


@pytest.mark.parametrize(("sizes", "written"), [((32, 32), ["batch_size"]), ((32, 64), ["batch_size", "image_size"])])
def test_a_picture_for_each_model_and_each_axis_the_sweep_went_through(sizes: tuple[int, int], written: list[str], tmp_path: Path) -> None:
    rows = [timed("fp32", batch, 1.0, 0.1, model="torchvision/a", size=size) for batch, size in zip((1, 2), sizes, strict=True)]
    rows.append(timed("fp32", 1, 1.0, 0.1, model="once"))
    rows.append(record("bad", status="failed"))
    files = latency_plots(rows, tmp_path)
    assert [file.name for file in files] == [f"latency-by-{key}-torchvision_a.png" for key in written]
    assert all(Image.open(file).size[0] > 500 for file in files)


def test_no_accuracy_no_picture(tmp_path: Path) -> None:
    assert not accuracy_plot(SWEEP, tmp_path / "accuracy.png") and not (tmp_path / "accuracy.png").exists()
