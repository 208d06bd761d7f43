"""The Q/DQ graph against the integer arithmetic it stands for."""

from __future__ import annotations

import gc
import platform
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from qexp.artifact import EngineSpec
from qexp.data.random import RandomData
from qexp.method.artifacts import make_artifact
from qexp.method.graph import export, folded_graph, graph_of
from qexp.method.quantize.converted import layer_formats
from qexp.method.quantize.fake_quantize import fix_all
from qexp.method.quantize.static import Static
from qexp.types import UserError
from tests import configured
from tests.method.training import SOURCE
from tests.tiers import more


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of several tests, each of which finds what one before it has made alike."""
    return tmp_path_factory.mktemp("artifacts")


class OneConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.classifier = nn.Linear(4 * 16 * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.relu(self.convolution(x)).flatten(1))


def quantised(values: np.ndarray, low: int, high: int, scale: np.ndarray, zero_point: int) -> np.ndarray:
    """round(v / scale) + zero_point, saturated: the definition (Jacob et al., 2018, equation 1), halves to even."""
    return np.clip(np.rint(values / scale) + zero_point, low, high)


def affine(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point of uint8 over a range that is widened to hold zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255
    return scale, int(np.clip(-np.rint(low / scale), 0, 255))


def convolve(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """3x3 convolution with padding 1 of x[B,C,H,W], written out in float64."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = x.shape[2:]
    return sum(
        np.einsum("bchw,oc->bohw", padded[:, :, i : i + height, j : j + width], weight[:, :, i, j])
        for i in range(3)
        for j in range(3)
    )


def test_no_graph_outlives_its_artifact(pretend_data: RandomData, tmp_path: Path) -> None:
    """Or a sweep would hold the weights of all networks that it has quantised."""

    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(thing), GraphModule) for thing in gc.get_objects())

    counted = []
    for seed in range(3):
        torch.manual_seed(seed)
        make_artifact(
            configured.method("static"),
            OneConvolution().eval(),
            pretend_data,
            EngineSpec(),
            SOURCE,
            tmp_path / str(seed),
        )
        counted.append(alive())
    assert counted[0] == counted[1] == counted[2]


def test_graph_computes_the_integer_arithmetic(pretend_data: RandomData, tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = OneConvolution().eval()
    artifact = make_artifact(
        configured.method("static", observer="minmax", reduce_range=False),
        network,
        pretend_data,
        EngineSpec(),
        SOURCE,
        tmp_path,
    )
    images = pretend_data.calibration()[:]
    answer = torch.export.load(artifact.folder / artifact.graph).module()(images).detach().numpy()

    x = images.numpy().astype(np.float64)
    weight, bias = (p.detach().numpy().astype(np.float64) for p in network.convolution.parameters())
    x_scale, x_zero = affine(x.min(), x.max())
    w_scale = np.abs(weight).reshape(4, -1).max(1) / 127
    integers = (
        quantised(x, 0, 255, x_scale, x_zero) - x_zero,
        quantised(weight, -127, 127, w_scale[:, None, None, None], 0),
    )
    accumulator = convolve(*integers)
    assert np.array_equal(accumulator, np.rint(accumulator)), "the accumulator holds whole numbers"
    hidden = np.maximum(accumulator * (x_scale * w_scale)[:, None, None] + bias[:, None, None], 0)
    # Ranges are those seen in calibration, before anything is quantised.
    float_hidden = network.relu(network.convolution(images)).detach().numpy()
    h_scale, h_zero = affine(float_hidden.min(), float_hidden.max())
    hidden = (quantised(hidden, 0, 255, h_scale, h_zero) - h_zero) * h_scale
    weight, bias = (p.detach().numpy().astype(np.float64) for p in network.classifier.parameters())
    w_scale = np.abs(weight).max(1) / 127
    logits = (
        hidden.reshape(len(x), -1) @ (quantised(weight, -127, 127, w_scale[:, None], 0) * w_scale[:, None]).T + bias
    )
    float_logits = network(images).detach().numpy()
    l_scale, l_zero = affine(float_logits.min(), float_logits.max())
    logits = (quantised(logits, 0, 255, l_scale, l_zero) - l_zero) * l_scale

    # float32 may round a value that lies on the edge of two steps to the other side: one step at most, and seldom.
    steps = np.abs(answer - logits) / l_scale
    assert steps.max() < 1.01
    assert (steps > 0.01).mean() < 0.05


@pytest.mark.thorough
@pytest.mark.integration
def test_onnxruntime_finds_no_float_operator_between_integer_ones(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path
) -> None:
    artifact = configured.engine("onnxruntime").lower(
        make_artifact(configured.method("static"), network, pretend_data, EngineSpec(), SOURCE, tmp_path), 1, 1
    )
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 3
    session = onnxruntime.InferenceSession(
        str(artifact.folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    operators = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    assert operators["QLinearConv"] == 6 and operators["QLinearAdd"] == 2 and operators["QGemm"] == 1
    assert not {"Conv", "FusedConv", "Add", "Gemm", "MatMul", "Relu"} & set(operators)

    x = pretend_data.calibration()[:].numpy()
    reference = torch.export.load(artifact.folder / artifact.graph).module()(torch.from_numpy(x)).detach().numpy()
    error = np.abs(session.run(None, {"x": x})[0] - reference).max() / np.abs(reference).max()
    assert error < 0.03


@pytest.mark.integration
def test_quantisation_keeps_the_function(pretend_data: RandomData, network: nn.Module, artifacts: Path) -> None:
    artifact = make_artifact(configured.method("static"), network, pretend_data, EngineSpec(), SOURCE, artifacts)
    x = pretend_data.calibration()[:]
    with torch.no_grad():
        expected, answer = network(x), torch.export.load(artifact.folder / artifact.graph).module()(x)
    noise = (expected - answer).pow(2).mean() / expected.pow(2).mean()
    assert 0 < noise < 0.01  # 20 dB; equal outputs would mean that nothing was quantised


def test_every_layer_is_found_quantised_in_the_graph(
    pretend_data: RandomData, network: nn.Module, artifacts: Path
) -> None:
    artifact = make_artifact(
        configured.method("static", reduce_range=False), network, pretend_data, EngineSpec(), SOURCE, artifacts
    )
    names = [n for n, m in network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert [(la.name, la.weight, la.activation) for la in artifact.layers] == [(n, "int8", "uint8") for n in names]


def test_an_unannotated_graph_counts_as_float(pretend_data: RandomData, network: nn.Module) -> None:
    graph = graph_of(export(network, pretend_data))
    assert set(layer_formats(graph).values()) == {("float32", "float32")}


@pytest.mark.integration
def test_unfused_keeps_batch_norm_apart_and_rounds_before_the_activation(
    pretend_data: RandomData, network: nn.Module
) -> None:
    x = pretend_data.calibration()[:]
    with torch.no_grad():
        torch.testing.assert_close(folded_graph(network, pretend_data, fuse=False)(x), network(x), rtol=1e-4, atol=1e-4)
    assert any(isinstance(m, nn.BatchNorm2d) for m in network.modules()), "the network itself is not changed"

    def quantize_nodes(method: Static) -> int:
        prepared = method.calibrated(network, pretend_data, EngineSpec())
        return sum(
            str(n.target).startswith("quantized_decomposed.quantize_per_tensor")
            for n in convert_pt2e(prepared).graph.nodes
        )

    # Six convolutions with batch norm, of which five are followed by a ReLU at once or after an addition.
    fused = quantize_nodes(configured.method("static"))
    apart = quantize_nodes(configured.method("static", fuse=False))
    assert apart > fused + 6


@pytest.mark.integration
def test_observers_that_saw_nothing_are_an_error_that_names_them(pretend_data: RandomData, network: nn.Module) -> None:
    folded = folded_graph(network, pretend_data)
    prepared = prepare_pt2e(folded, configured.method("static").placement(folded, EngineSpec()))
    with pytest.raises(UserError, match=r"Not calibrated.*relu"):
        fix_all(prepared)


def test_unknown_observer_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'histogram'"):
        configured.method("static", observer="histogramm")


@pytest.mark.integration
@pytest.mark.parametrize(
    ("activation", "low", "high", "symmetric"),
    [("uint8", 0, 255, False), *more(("int8", -128, 127, False)), ("int8_symmetric", -128, 127, True)],
)
def test_activations_are_the_integers_that_the_engine_wants(
    activation: str, low: int, high: int, symmetric: bool, pretend_data: RandomData, network: nn.Module, artifacts: Path
) -> None:
    artifact = make_artifact(
        configured.method("static"), network, pretend_data, EngineSpec(activation=activation), SOURCE, artifacts
    )
    graph = torch.export.load(artifact.folder / artifact.graph).graph
    pairs = [node for node in graph.nodes if "quantize_per_tensor" in str(node.target)]
    dtype = getattr(torch, activation.removesuffix("_symmetric"))
    assert pairs and {(node.args[3], node.args[4], node.args[5]) for node in pairs} == {(low, high, dtype)}
    assert ({node.args[2] for node in pairs} == {0}) == symmetric
    assert {layer.activation for layer in artifact.layers} == {str(dtype).removeprefix("torch.")}


def integer_weights(file: Path) -> list[np.ndarray]:
    """The int8 tensors of a graph."""
    return [value.numpy() for value in torch.export.load(file).state_dict.values() if value.dtype == torch.int8]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("placement", "activation"), [("fused", "uint8"), *more(("x86_inductor", "uint8"), ("fused", "int8"))]
)
def test_a_reduced_range_keeps_weights_in_seven_bits(
    placement: str, activation: str, pretend_data: RandomData, network: nn.Module, artifacts: Path
) -> None:
    engine_spec = EngineSpec(placement=placement, activation=activation)
    whole, reduced = (
        make_artifact(
            configured.method("static", reduce_range=reduce), network, pretend_data, engine_spec, SOURCE, artifacts
        )
        for reduce in (False, True)
    )
    largest = {"uint8": 63, "int8": 127}[activation]  # pairs of int8 products fit into 16 bits as they are
    for artifact, limit in ((whole, 127), (reduced, largest)):
        weights = integer_weights(artifact.folder / artifact.graph)
        assert len(weights) == 7 and [np.abs(weight.astype(int)).max() for weight in weights] == [limit] * 7
    assert whole.label == "static int8"
    assert reduced.label == ("static int8 7-bit weights" if largest == 63 else "static int8")
    assert 2 * 255 * largest < 2**15 or activation == "int8"
    if largest == 63:
        x = pretend_data.calibration()[:]
        answer = torch.export.load(reduced.folder / reduced.graph).module()(x)
        assert (network(x) - answer).abs().max() < 0.1 * network(x).abs().max()


@pytest.mark.parametrize(
    ("machine", "vnni", "reduced"),
    [("x86_64", False, True), ("AMD64", False, True), ("x86_64", True, False), ("aarch64", False, False)],
)
def test_the_range_is_reduced_where_products_saturate(
    machine: str, vnni: bool, reduced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    assert configured.method("static").reduce_range == reduced
    assert configured.method("static", reduce_range=not reduced).reduce_range != reduced


@pytest.mark.integration
def test_unfused_is_in_the_label(pretend_data: RandomData, network: nn.Module, artifacts: Path) -> None:
    method = configured.method("static", fuse=False, reduce_range=False)
    assert make_artifact(method, network, pretend_data, EngineSpec(), SOURCE, artifacts).label == "static int8 unfused"
