"""What layers.csv and the histograms say of a network, against float64 formulas and NumPy on the same values."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qexp.artifact import EngineSpec
from qexp.data.random import RandomData
from qexp.method.artifacts import make_artifact
from qexp.method.base import Method
from qexp.method.quantize import layer_statistics
from tests import configured
from tests.method.training import SOURCE


def rows_of(
    method: Method, engine_spec: EngineSpec, network: nn.Module, data: RandomData, root: Path
) -> tuple[dict[str, dict[str, str]], Path]:
    """layers.csv by layer, and the artifact's folder."""
    folder = make_artifact(method, network, data, engine_spec, SOURCE, root).folder
    return {row["layer"]: row for row in csv.DictReader((folder / "layers.csv").read_text().splitlines())}, folder


def numbers(row: dict[str, str], tensor: str) -> dict[str, float]:
    return {
        name.removeprefix(f"{tensor}_"): float(value)
        for name, value in row.items()
        if name.startswith(f"{tensor}_") and value
    }


def folded(network: Any, layer: str, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias in float64 of a convolution with the batch norm after it."""
    batch_norm = network.get_submodule(norm)
    factor = (batch_norm.weight.double() / torch.sqrt(batch_norm.running_var.double() + batch_norm.eps)).detach()
    weight = network.get_submodule(layer).weight.detach().double() * factor[:, None, None, None]
    return weight.numpy(), (batch_norm.bias.double() - batch_norm.running_mean.double() * factor).detach().numpy()


def sqnr(exact: np.ndarray, rounded: np.ndarray) -> float:
    return float(10 * np.log10((exact**2).sum() / ((exact - rounded) ** 2).sum()))


def rounded_per_channel(weight: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric, by the least and largest weight of each channel, and the scales."""
    rows = weight.reshape(len(weight), -1)
    top = 2 ** (bits - 1)
    scale = np.maximum(rows.max(1) / (top - 1), -rows.min(1) / top)[:, None]
    return (np.clip(np.rint(rows / scale), -top, top - 1) * scale).reshape(weight.shape), scale


@pytest.mark.integration
def test_facts_of_a_layer_are_those_of_the_formulas(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"bits": 4, "first_last_bits": None, "observer": "percentile", "percentile": 97}
    rows, folder = rows_of(configured.method("static", **options), EngineSpec(), network, pretend_data, tmp_path)
    weight, bias = folded(network, "stem.0", "stem.1")
    rounded, scale = rounded_per_channel(weight, 4)
    found = numbers(rows["stem.0"], "weight")
    expected = {
        "low": weight.min(), "high": weight.max(), "scale_min": scale.min(), "scale_max": scale.max(),
        "zero_point_min": 0, "zero_point_max": 0, "clip_low": -8 * scale.max(), "clip_high": 7 * scale.max(),
        "clipped": 0,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert found["sqnr_db"] == pytest.approx(sqnr(weight, rounded), abs=0.01)

    x = pretend_data.calibration()[:].double().numpy()
    assert len(x) < layer_statistics.IMAGES, "all of them are looked at"
    found = numbers(rows["stem.0"], "input")
    step, zero_point = found["scale_min"], found["zero_point_min"]
    integers = np.rint(x / step) + zero_point
    inside = (np.clip(integers, 0, 15) - zero_point) * step
    clipped = ((integers < 0) | (integers > 15)).mean()
    assert (found["low"], found["high"]) == pytest.approx((x.min(), x.max()), rel=1e-5)
    assert (found["clip_low"], found["clip_high"]) == pytest.approx(
        (-zero_point * step, (15 - zero_point) * step), rel=1e-5
    )
    assert found["clipped"] == pytest.approx(clipped, abs=2e-4) and clipped > 0.005
    assert found["sqnr_db"] == pytest.approx(sqnr(x, inside), abs=0.02)

    def convolved(images: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return nn.functional.conv2d(torch.tensor(images), torch.tensor(weights), torch.tensor(bias), padding=1).numpy()

    assert float(rows["stem.0"]["output_sqnr_db"]) == pytest.approx(
        sqnr(convolved(x, weight), convolved(inside, rounded)), abs=0.05
    )
    assert all(float(row["output_sqnr_db"]) < 40 and row["weight"] == "int4" and row["macs"] for row in rows.values())

    with np.load(folder / "histograms.npz") as histograms:
        edges, before, after = (histograms[f"stem.0/input/{part}"] for part in ("edges", "before", "after"))
    np.testing.assert_allclose(before, np.histogram(x, edges)[0], atol=3)
    assert before.sum() == after.sum() == x.size and np.count_nonzero(after) == 16
    assert edges[0] <= min(x.min(), found["clip_low"]) and edges[-1] >= max(x.max(), found["clip_high"])


@pytest.mark.integration
def test_an_activation_in_place_does_not_touch_what_is_compared(pretend_data: RandomData, tmp_path: Path) -> None:
    found = []
    for in_place in (False, True):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(in_place), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
        )
        rows, _ = rows_of(configured.method("static"), EngineSpec(), network, pretend_data, tmp_path / str(in_place))
        found.append([float(row["output_sqnr_db"]) for row in rows.values()])
    assert found[0] == found[1] and min(found[0]) > 20


@pytest.mark.integration
def test_of_large_images_some_are_looked_at(
    pretend_data: RandomData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_statistics, "PIXELS", 8 * 16 * 16)
    network = nn.Sequential(nn.Conv2d(3, 10, 16), nn.Flatten())
    _, folder = rows_of(configured.method("static"), EngineSpec(), network, pretend_data, tmp_path)
    x = pretend_data.calibration()[:].numpy()
    with np.load(folder / "histograms.npz") as histograms:
        edges, before = histograms["0/input/edges"], histograms["0/input/before"]
    assert len(x) == 32
    np.testing.assert_array_equal(before, np.histogram(x[::4], edges)[0])


@pytest.mark.thorough
@pytest.mark.integration
def test_reconstructed_weights_are_compared_with_those_before(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path
) -> None:
    method = configured.method(
        "reconstruct", algorithm="adaround", iterations=300, lr=0.01, batch_size=8, bits=4, first_last_bits=None
    )
    rows, _ = rows_of(method, EngineSpec(), network, pretend_data, tmp_path)
    weight, _ = folded(network, "blocks.0.body.0", "blocks.0.body.1")
    nearest = sqnr(weight, rounded_per_channel(weight, 4)[0])
    assert 5 < float(rows["blocks.0.body.0"]["weight_sqnr_db"]) < nearest - 0.1, (
        "not all were rounded to the nearest value"
    )


def test_half_precision_tells_the_error_of_weights(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path
) -> None:
    rows, _ = rows_of(
        configured.method("half", dtype="float16"), EngineSpec(half=("float16",)), network, pretend_data, tmp_path
    )
    weight = network.get_parameter("stem.0.weight").detach().numpy()
    expected = sqnr(weight.astype(np.float64), weight.astype(np.float16).astype(np.float64))
    assert float(rows["stem.0"]["weight_sqnr_db"]) == pytest.approx(expected, abs=0.01)
    assert rows["stem.0"]["input_scale_min"] == "" and rows["stem.0"]["weight"] == "float16"


BY_ONNXRUNTIME, BY_TORCH = EngineSpec(formats=("onnx",)), EngineSpec(("torchscript",), kernels="x86")


@pytest.mark.integration
@pytest.mark.parametrize(
    ("method", "engine_spec", "signed"),
    [
        (configured.method("dynamic"), BY_ONNXRUNTIME, False),
        (configured.torchscript("dynamic", layers="linear"), BY_TORCH, True),
    ],
)
def test_dynamic_quantisation_tells_of_weights(
    method: Method, engine_spec: EngineSpec, signed: bool, pretend_data: RandomData, network: nn.Module, tmp_path: Path
) -> None:
    rows, _ = rows_of(method, engine_spec, network, pretend_data, tmp_path)
    weight = network.get_parameter("classifier.weight").detach().double().numpy()
    found = numbers(rows["classifier"], "weight")
    scale = 2 * np.abs(weight).max() / 255 if signed else (weight.max() - weight.min()) / 255
    assert found["scale_min"] == found["scale_max"] == pytest.approx(scale, rel=0.01)
    zero_point = found["zero_point_min"]
    limits = (-128, 127) if signed else (0, 255)
    rounded = (np.clip(np.rint(weight / found["scale_min"]) + zero_point, *limits) - zero_point) * found["scale_min"]
    assert found["sqnr_db"] == pytest.approx(sqnr(weight, rounded), abs=0.1) and 35 < found["sqnr_db"] < 60


def test_without_compression_only_ranges_are_told(pretend_data: RandomData, network: nn.Module, tmp_path: Path) -> None:
    rows, _ = rows_of(configured.torchscript("dynamic", layers="linear"), BY_TORCH, network, pretend_data, tmp_path)
    weight = network.get_parameter("stem.0.weight").detach()
    assert numbers(rows["stem.0"], "weight") == pytest.approx(
        {"low": float(weight.min()), "high": float(weight.max())}, rel=1e-5
    )
