"""Pictures of a sweep, read back from the axes they are drawn on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from qexp.records import Record
from qexp.report.plot import _accuracy_by_bits, _curves, accuracy_plot, bits_plots, latency_plots
from tests.report.support import record


def timed(label: str, batch: int, mean: float, std: float, model: str = "vgg", size: int = 32) -> Record:
    made = record(label, batch=batch, model=model, latency_mean_ms=mean, latency_std_ms=std)
    made.params["image_size"] = size
    return made


SWEEP = [
    timed("fp32", 8, 16.0, 2.0),
    timed("fp32", 1, 2.0, 0.5),
    timed("static int8", 1, 0.5, 0.1),
    timed("static int8", 8, 4.0, 0.2),
]


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
def test_a_picture_for_each_model_and_each_axis_the_sweep_went_through(
    sizes: tuple[int, int], written: list[str], tmp_path: Path
) -> None:
    rows = [
        timed("fp32", batch, 1.0, 0.1, model="torchvision/a", size=size)
        for batch, size in zip((1, 2), sizes, strict=True)
    ]
    rows.append(timed("fp32", 1, 1.0, 0.1, model="once"))
    rows.append(record("bad", status="failed"))
    files = latency_plots(rows, tmp_path)
    assert [file.name for file in files] == [f"latency-by-{key}-torchvision_a.png" for key in written]
    assert all(Image.open(file).size[0] > 500 for file in files)


def test_no_accuracy_no_picture(tmp_path: Path) -> None:
    assert not accuracy_plot(SWEEP, tmp_path / "accuracy.png") and not (tmp_path / "accuracy.png").exists()


def lowered(bits: int | str, top1: float, observer: str = "mse", method: str = "static", **extra: float) -> Record:
    made = record(f"{method} {bits}", top1=top1, **extra)
    made.params["bits"] = bits
    return replace(made, config={"seed": 0, "method": {"_target_": f"qexp.{method}", "observer": observer}})


OBSERVERS = [
    lowered(8, 0.9), lowered(4, 0.7), lowered("w4a8", 0.8), lowered(3, 0.4), lowered(8, 0.89, "minmax"),
    lowered(3, 0.2, "minmax"),
    lowered("4 bits on average", 0.85, method="mixed"), lowered(2, 0.5, method="qat"),
]  # fmt: skip


def lines(figure: Figure) -> dict[str, tuple[list[int], list[float]]]:
    """The nearest ticks and the heights of the points of each line."""
    (axes,) = figure.axes
    assert all(abs(x - round(x)) < 0.2 for line in axes.lines if len(line.get_xdata()) > 2 for x in line.get_xdata())
    return {
        str(line.get_label()): ([round(x) for x in line.get_xdata()], pytest.approx(list(line.get_ydata())))
        for line in axes.lines
    }


def test_accuracy_falls_with_bits_from_left_to_right() -> None:
    figure = _accuracy_by_bits([*OBSERVERS, lowered(32, 0.91, method="none")], "vgg")
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["8", "w4a8", "4", "3", "2"]
    assert lines(figure) == {
        "static · observer mse": ([0, 1, 2, 3], [90, 80, 70, 40]), "static · observer minmax": ([0, 3], [89, 20]),
        "qat · observer mse": ([4], [50]), "fp32, 91.00 %": ([0, 1], [91, 91]),
    }  # fmt: skip


def test_fp32_is_what_the_runs_were_compared_with_if_it_has_none() -> None:
    rows = [lowered(8, 0.9, top1_drop=0.01), lowered(4, 0.7, top1_drop=0.21)]
    assert [*lines(_accuracy_by_bits(rows, "vgg"))] == ["static", "fp32, 91.00 %"]
    assert [*lines(_accuracy_by_bits([*rows, lowered(32, 0.95, method="none", top1_drop=0.0)], "vgg"))] == [
        "static",
        "fp32, 95.00 %",
    ]
    assert [*lines(_accuracy_by_bits(OBSERVERS[:4], "vgg"))] == ["static"]


def test_points_of_equal_height_do_not_cover_each_other() -> None:
    rows = [lowered(bits, 0.5, observer) for bits in (8, 4) for observer in ("mse", "minmax", "lsq")]
    (axes,) = _accuracy_by_bits(rows, "vgg").axes
    places = sorted(x for line in axes.lines for x in line.get_xdata())
    assert np.diff(places).min() > 0.04


def test_a_picture_of_bits_for_each_model_with_several(tmp_path: Path) -> None:
    rows = [
        lowered(8, 0.9),
        lowered(4, 0.8),
        lowered(8, 0.9),
        lowered(4, 0.8),
        lowered(8, 0.9),
        lowered(32, 0.91, method="none"),
    ]
    rows[2].params["model"] = rows[3].params["model"] = "torchvision/a"
    rows[4].params["model"] = rows[5].params["model"] = "once"  # fp32 is no second point
    failed = replace(lowered(4, 0.8), status="failed")
    failed.params["model"] = "once"
    files = bits_plots([*rows, failed], tmp_path)
    assert [file.name for file in files] == ["accuracy-by-bits-vgg.png", "accuracy-by-bits-torchvision_a.png"]
    assert all(Image.open(file).size[0] > 500 for file in files)
    rows[3].params["data"] = "birds"  # one picture would compare accuracies of different images
    assert [file.name for file in bits_plots(rows, tmp_path)] == ["accuracy-by-bits-vgg-pets.png"]


def test_options_that_differ_are_in_the_names_of_all_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: saved.append(figure))
    numbers = {"size_mb": 1.0, "latency_ms": 1.0, "latency_mean_ms": 1.0, "latency_std_ms": 0.1}
    rows = [lowered(8, 0.9, observer, **numbers) for observer in ("mse", "minmax")]
    assert accuracy_plot(rows, tmp_path / "accuracy.png")
    drawn = [points for points in saved[0].axes[1].collections if points.get_label()]
    assert [points.get_label() for points in drawn] == [
        "vgg · static 8 · observer mse",
        "vgg · static 8 · observer minmax",
    ]
    first, second = (points.get_paths()[0].vertices for points in drawn)
    assert first.shape != second.shape, "two shapes"
    (axes,) = _curves(rows, "batch_size", "").axes
    assert [c.get_label() for c in axes.containers] == [
        "static 8 · eager · observer mse",
        "static 8 · eager · observer minmax",
    ]


def test_a_long_legend_is_not_cut(tmp_path: Path) -> None:
    rows = [record(f"m{i}", top1=0.5, size_mb=1.0 + i, latency_ms=1.0) for i in range(40)]
    assert accuracy_plot(rows[:3], tmp_path / "short.png") and accuracy_plot(rows, tmp_path / "long.png")
    heights = [Image.open(tmp_path / f"{name}.png").size[1] for name in ("short", "long")]
    assert heights[0] == 675 and heights[1] > 40 * 0.2 * 150
