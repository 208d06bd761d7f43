"""Pictures of one run's layers, read back from the axes they are drawn on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qexp.report.layers import bits_of, draw_layers, layer_figure, layers_figure, sensitivity_figure

TENSOR = {
    "low": "-2", "high": "3", "clip_low": "-1", "clip_high": "1.5", "scale_min": "0.1", "scale_max": "0.3",
    "zero_point_min": "0", "zero_point_max": "0", "clipped": "0.0123", "sqnr_db": "21.5",
}  # fmt: skip


def row(
    layer: str, weight: str = "int4", activation: str = "uint8", output: str = "17.5", **changes: str
) -> dict[str, str]:
    tensors = {f"{tensor}_{name}": value for tensor in ("weight", "input") for name, value in TENSOR.items()}
    made = {
        "layer": layer,
        "kind": "conv2d",
        "weight": weight,
        "activation": activation,
        **tensors,
        "output_sqnr_db": output,
    }
    return {**made, **changes}


ROWS = [
    row("stem", "int8", "uint8", "40"),
    row("body.0", weight_sqnr_db="18", input_sqnr_db="inf"),
    row("body.1", "float32", "float32", ""),
]
EDGES = np.linspace(-2, 3, 11)
HISTOGRAMS = {
    f"body.0/{tensor}/{part}": values
    for tensor in ("weight", "input")
    for part, values in {
        "edges": EDGES,
        "before": np.arange(10.0),
        "after": np.array([0, 0, 5, 0, 30, 0, 10, 0, 0, 0]),
    }.items()
}
SENSITIVITIES = [
    {"layer": layer, "weight_bits": bits, "activation_bits": bits, "loss_change_nats": loss, "sqnr_db": sqnr}
    for layer, bits, loss, sqnr in [
        ("a", "2", "0.5", "3"),
        ("a", "4", "0.01", "20"),
        ("b", "2", "0.25", "6"),
        ("b", "4", "0.02", "inf"),
    ]
]


@pytest.mark.parametrize(
    ("number_format", "bits"), [("int4", 4), ("uint8", 8), ("float32", 32), ("bfloat16", 16), ("float16", 16)]
)
def test_bits_of_a_format(number_format: str, bits: int) -> None:
    assert bits_of(number_format) == bits


def test_all_layers_with_their_errors_and_bits() -> None:
    above, below = layers_figure(ROWS).axes
    drawn = {line.get_label(): np.asarray(line.get_ydata(), float) for line in above.lines}
    np.testing.assert_array_equal(drawn["weights"], [21.5, 18, 21.5])
    np.testing.assert_array_equal(drawn["input"], [21.5, np.nan, 21.5])
    np.testing.assert_array_equal(drawn["result, against fp32"], [40, 17.5, np.nan])
    assert [bar.get_height() for bar in below.patches] == [8, 4, 32, 8, 8, 32]
    assert [tick.get_text() for tick in below.get_xticklabels()] == ["stem", "body.0", "body.1"]


def test_sensitivities_are_a_line_for_each_width() -> None:
    above, below = sensitivity_figure(SENSITIVITIES).axes
    assert {line.get_label(): list(line.get_ydata()) for line in above.lines} == {
        "2 bits": [0.5, 0.25],
        "4 bits": [0.01, 0.02],
    }
    np.testing.assert_array_equal(below.lines[1].get_ydata(), [20, np.nan])
    assert [tick.get_text() for tick in below.get_xticklabels()] == ["a", "b"]


def test_histograms_of_a_layer_show_where_values_are_clipped() -> None:
    for axes in layer_figure(row("body.0"), HISTOGRAMS).axes:
        np.testing.assert_allclose(axes.patches[0].get_data().values, np.arange(10) / 45)  # type: ignore[attr-defined]
        (lines,) = axes.collections
        tops = [(segment[1][0], segment[1][1]) for segment in lines.get_segments()]  # type: ignore[attr-defined]
        np.testing.assert_allclose(tops, [(-0.75, 5 / 45), (0.25, 30 / 45), (1.25, 10 / 45)])
        assert [line.get_xdata()[0] for line in axes.lines] == [-1, 1.5]  # type: ignore[index]
        assert (
            axes.get_title().endswith("21.5 dB, 1.2 % clipped")
            and "scales 0.1 to 0.3, zero point 0" in axes.get_title()
        )


def test_pictures_are_those_that_there_is_something_for(tmp_path: Path) -> None:
    def write(name: str, rows: list[dict[str, str]]) -> None:
        (tmp_path / name).write_text("\n".join([",".join(rows[0]), *(",".join(each.values()) for each in rows)]))

    plain = {**dict.fromkeys(ROWS[0], ""), "layer": "fc", "weight": "float32"}
    write("layers.csv", [plain])
    assert draw_layers(tmp_path, tmp_path, "fc") == []
    write("layers.csv", ROWS[:2])
    write("sensitivity.csv", SENSITIVITIES)
    np.savez(tmp_path / "histograms.npz", **HISTOGRAMS)  # type: ignore[arg-type]
    assert [file.name for file in draw_layers(tmp_path, tmp_path, None)] == ["layers.png", "sensitivity.png"]
    files = draw_layers(tmp_path, tmp_path, "body*")
    assert [file.name for file in files] == ["layers.png", "sensitivity.png", "layer-body.0.png"]
    assert all(Image.open(file).size[0] > 500 for file in files)
