"""Operators between layers: which become integers, which are rewritten for it, and what is left in floating point."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e
from torchvision.models import DenseNet

from qexp.artifact import EngineSpec, FloatIslands
from qexp.data.random import RandomData
from qexp.method.artifacts import make_artifact
from qexp.method.quantize.base import observe
from qexp.method.quantize.converted import float_islands
from qexp.method.quantize.decompositions import KERNELS, absorb_factors, decompose
from qexp.method.quantize.fake_quantize import fix_all
from qexp.types import UserError
from tests import configured
from tests.engine.support import BATCH, engine_named, error, graph_logits, run
from tests.method.graphs import values
from tests.patterns.composed import Applied
from tests.tiers import more

aten = torch.ops.aten


def attention(mask: Tensor | None = None, scale: float | None = None) -> Callable[[Tensor], Tensor]:
    """Attention of 16 rows, each of 16 values, with keys and values of other rows."""

    def function(x: Tensor) -> Tensor:
        given = mask.to(x.dtype) if mask is not None and mask.is_floating_point() else mask
        return F.scaled_dot_product_attention(x, x.flip(2), 2 * x, attn_mask=given, scale=scale)

    return function


VISIBLE = torch.rand(16, 16, generator=torch.Generator().manual_seed(0)) < 0.7
VISIBLE[:, 0] = True  # each row sees something
REWRITTEN: dict[str, Callable[[Tensor], Tensor]] = {
    "hardswish": lambda x: F.hardswish(x),
    "hardsigmoid": lambda x: F.hardsigmoid(x),
    "silu": lambda x: F.silu(x),
    "mean": lambda x: x.mean((2, 3)),
    "padded average pooling": lambda x: F.avg_pool2d(x, (3, 2), 2, (1, 0)),
    "mean that keeps its axes": lambda x: x.mean([-1, -2], keepdim=True),
    "attention": attention(),
    "attention with a scale": attention(scale=0.7),
    "attention with a bias": attention(torch.linspace(-1, 1, 256).reshape(16, 16)),
    "attention with a mask": attention(VISIBLE),
}


GONE = {
    aten.hardswish.default, aten.hardsigmoid.default, aten.silu.default, aten.mean.dim,
    aten.scaled_dot_product_attention.default,
}  # fmt: skip


@pytest.mark.parametrize("name", REWRITTEN)
def test_what_is_rewritten_computes_the_same(name: str) -> None:
    network, x = Applied(REWRITTEN[name]), 4 * torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    graph = torch.export.export(network, (x,)).module(check_guards=False)
    assert isinstance(graph, GraphModule)
    assert decompose(graph, KERNELS["fused"])
    assert not any(node.target in GONE for node in graph.graph.nodes)
    torch.testing.assert_close(graph(x).double(), network(x.double()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
        lambda x: F.gelu(x).mean(1),
        lambda x: x.flatten(2).mean(2),
    ],
)
def test_everything_else_stays(function: Callable[[Tensor], Tensor]) -> None:
    graph = torch.export.export(Applied(function), (torch.randn(2, 3, 16, 16),)).module(check_guards=False)
    assert isinstance(graph, GraphModule) and not decompose(graph, KERNELS["fused"])


class Scaled(nn.Module):
    """A convolution, whose result is multiplied by numbers on its way to a sum and to a product."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(F.relu(x + x * 0.25) * (x / 8)).mean((2, 3))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RandomData:
    return configured.pretend_data(tmp_path_factory.mktemp("images"))


def converted(network: nn.Module, data: RandomData, spec: EngineSpec) -> tuple[GraphModule, GraphModule]:
    """The calibrated graph, and the same with quantize/dequantize pairs."""
    torch.manual_seed(0)
    prepared = configured.method("static").prepared(network.eval(), data, spec)
    observe(prepared, data.calibration()[:], 64)
    fix_all(prepared)
    expected = values(prepared, data.calibration()[:])
    graph = convert_pt2e(prepared)
    for name, value in values(graph, data.calibration()[:]).items():
        if name in expected and isinstance(value, Tensor):
            torch.testing.assert_close(value, expected[name], msg=name)
    return prepared, graph


def test_numbers_become_part_of_scales(data: RandomData) -> None:
    _, graph = converted(Scaled(), data, EngineSpec())
    x = data.calibration()[:]
    before, scales = graph(x), dequantized(graph)
    absorb_factors(graph)
    torch.testing.assert_close(graph(x), before)
    assert not any(
        isinstance(arg, float) for node in graph.graph.nodes if node.target == aten.mul.Tensor for arg in node.args
    )
    assert not any(node.target == aten.div.Tensor for node in graph.graph.nodes)
    changed = {round(b / a, 6) for a, b in zip(scales, dequantized(graph), strict=True)}
    assert changed == {1, 0.25, 0.125}
    assert float_islands(graph) == FloatIslands(0, 0)


def dequantized(graph: GraphModule) -> list[float]:
    """The scales of all tensors that are dequantised, in the order of the graph."""
    return [n.args[1] for n in graph.graph.nodes if "dequantize_per_tensor" in str(n.target)]  # type: ignore[misc]


class Between(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x))).mean((2, 3))


def shuffled(x: Tensor) -> Tensor:
    """Channels in another order, rows rolled, in parts of different sizes, cropped, and larger than before."""
    a, b = x.split([2, 6], 1)
    c, d, e = b.chunk(3, 1)
    x = torch.cat([c, a, e, d], 1).roll(1, 2)
    return F.pixel_shuffle(F.interpolate(x[:, :, 1:-1, 1:-1], scale_factor=2), 1)


# What stands between two convolutions; operators and conversions in floating point, for ONNX Runtime and for XNNPACK.
KINDS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, int], tuple[int, int]]] = {
    "nothing but moves": (shuffled, (0, 0), (0, 0)),
    "relu": (lambda x: F.relu(x), (0, 0), (0, 0)),
    "hardswish": (lambda x: F.hardswish(x), (0, 0), (1, 2)),
    "a gate": (lambda x: x * F.hardsigmoid(x.mean((2, 3), keepdim=True)), (0, 0), (2, 2)),
    "silu": (lambda x: F.silu(x), (0, 0), (1, 2)),
    "leaky relu": (lambda x: F.leaky_relu(x, 0.1), (0, 0), (1, 2)),
    "gelu": (lambda x: F.gelu(x), (1, 2), (1, 2)),
    "two curves": (lambda x: torch.tanh(F.gelu(x)), (2, 2), (2, 2)),
}


@pytest.mark.parametrize(("placement", "kernels"), [("fused", 1), *more(("xnnpack", 2))])
@pytest.mark.parametrize("name", KINDS)
def test_operators_and_conversions_in_floating_point_are_counted(
    name: str, placement: str, kernels: int, data: RandomData
) -> None:
    _, graph = converted(Between(KINDS[name][0]), data, EngineSpec(placement=placement))
    absorb_factors(graph)
    assert float_islands(graph) == FloatIslands(*KINDS[name][kernels])


class Tokens(nn.Module):
    """Attention over 16 rows between linear layers, with a sum past it that a norm reads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.norm, self.head = (
            nn.Linear(48, 96),
            nn.Linear(32, 48),
            nn.LayerNorm(48),
            nn.Linear(48, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 1, 3).flatten(2)
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 16)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.norm(x + self.out(mixed)).mean(1))


@pytest.mark.integration
def test_products_of_attention_are_integers_and_sums_past_it_are_not(data: RandomData) -> None:
    prepared, graph = converted(Tokens(), data, EngineSpec())
    absorb_factors(graph)
    products = [node for node in graph.graph.nodes if node.target == aten.matmul.default]
    assert len(products) == 2
    assert all("dequantize" in str(source.target) for node in products for source in node.all_input_nodes)
    (softmax,) = (node for node in graph.graph.nodes if node.target == aten.softmax.int)
    assert softmax.args[0] is products[0], "in floating point, with the factor in the scale of the queries"
    (sum_,) = (node for node in graph.graph.nodes if node.target == aten.add.Tensor)
    assert not any("quantize_per" in str(user.target) for user in sum_.users)
    # Softmax, sum, norm and mean; attention's weights, the images and the mean are converted.
    assert float_islands(graph) == FloatIslands(4, 3)


def test_attention_may_stay_in_floating_point(data: RandomData) -> None:
    prepared = configured.method("static", attention="float").prepared(Tokens().eval(), data, EngineSpec())
    assert [n.target for n in prepared.graph.nodes if "attention" in str(n.target)] == [
        aten.scaled_dot_product_attention.default
    ]
    with pytest.raises(UserError, match="method.attention=int8 does not exist; give integer or float"):
        configured.method("static", attention="int8")


@pytest.mark.integration
@pytest.mark.parametrize(
    ("method", "products"), [("static", 1), ("static attention=float", 0), ("half", 1), ("none", 0)]
)
def test_products_of_attention_count_where_they_compute_in_few_bits(
    method: str, products: int, data: RandomData, tmp_path: Path
) -> None:
    name, *options = method.split()
    made = configured.method(name, **dict(option.split("=") for option in options))
    source = {"model": "tokens", "weights": "random"}
    artifact = make_artifact(made, Tokens().eval(), data, EngineSpec(half=("bfloat16",)), source, tmp_path)
    layers = 16 * 48 * 96 + 16 * 32 * 48 + 48 * 10
    attention = 2 * (2 * 16 * 16 * 16)  # two products in two heads, of 16 rows of 16 values
    assert artifact.macs == layers + attention
    assert artifact.quantized_macs == (0 if name == "none" else layers) + products * attention


@pytest.mark.integration
@pytest.mark.parametrize(
    "name", ["silu", "two curves", *more(*(name for name in KINDS if name not in ("silu", "two curves")))]
)
def test_onnx_runtime_has_kernels_for_what_counts_as_integer(name: str, data: RandomData, tmp_path: Path) -> None:
    torch.manual_seed(0)
    engine, source = engine_named("onnxruntime"), {"model": "between", "weights": "random"}
    network = Between(KINDS[name][0]).eval()
    made = engine.lower(make_artifact(configured.method("static"), network, data, engine.spec, source, tmp_path), 2, 1)
    x = np.asarray(data.calibration()[:8])
    assert error(engine.open(made.folder / engine.file, 1)(x), graph_logits(made, x)) < 4 / 127
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that the file is for this processor only
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(made.folder / engine.file), options, providers=["CPUExecutionProvider"])
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert found["QLinearConv"] == 2 and "Conv" not in found
    # Those of the logits, and of what enters an island.
    assert found["DequantizeLinear"] == 1 + KINDS[name][1][1] // 2


class Everything(nn.Module):
    """Layers with an activation, a norm or a product between them that XNNPACK has no integer kernel for."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1)
        self.norm, self.tokens = nn.GroupNorm(2, 8), Tokens()
        self.tokens.qkv = nn.Linear(32, 96)
        self.tokens.out, self.tokens.norm, self.tokens.head = nn.Linear(32, 32), nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(F.silu(self.a(x)))
        x = self.c(F.gelu(self.norm(x)) * torch.sigmoid(x.mean((2, 3), keepdim=True)))
        return self.tokens(F.hardswish(F.avg_pool2d(x, 6)))


@pytest.mark.integration
@pytest.mark.parametrize("name", more("executorch", "openvino"))
def test_engines_take_graphs_with_operators_in_floating_point(name: str, data: RandomData, tmp_path: Path) -> None:
    torch.manual_seed(0)
    engine, source = engine_named(name), {"model": "everything", "weights": "random"}
    made = make_artifact(configured.method("static"), Everything().eval(), data, engine.spec, source, tmp_path)
    made = engine.lower(made, BATCH, 1)
    x = np.asarray(data.calibration()[:8])
    assert error(run(engine, made, x), graph_logits(made, x)) < 4 / 127
    assert made.islands is not None and made.islands.operators > 0


class ClassToken(nn.Module):
    """A token that is concatenated with what a convolution gives, on the way to a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 32, 4, 4), nn.Parameter(torch.randn(1, 1, 32))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)
        nn.init.normal_(self.patches.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)).mean(1))


class Ghost(nn.Module):
    """A convolution and one of its result, concatenated. torch.onnx leaves the slice of everything out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.primary, self.cheap = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.shortcut, self.head = nn.Conv2d(8, 16, 1), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        primary = self.primary(x)
        both = torch.cat([primary, self.cheap(primary)], 1)[:, :16]
        return self.head((both + self.shortcut(x)).relu().mean((2, 3)))


def test_a_concatenation_is_rounded_after_its_activation_and_not_before(data: RandomData) -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.cat([self.a(x), self.b(x)], 1).relu().mean((2, 3)))

    _, graph = converted(Joined(), data, EngineSpec())
    (joined,) = (node for node in graph.graph.nodes if node.target == aten.cat.default)
    assert all("dequantize" in str(source.target) for source in joined.all_input_nodes)
    assert [str(user.target) for user in joined.users] == ["aten.relu.default"]


@pytest.mark.integration
@pytest.mark.parametrize("network", [ClassToken, *more(Ghost)])
def test_openvino_computes_concatenations_as_the_graph_does(
    network: type[nn.Module], data: RandomData, tmp_path: Path
) -> None:
    """It gave all channels the bias of the first beside a class token, and crashed on the other network."""
    torch.manual_seed(0)
    engine, source = engine_named("openvino"), {"model": "joined", "weights": "random"}
    made = make_artifact(configured.method("static"), network().eval(), data, engine.spec, source, tmp_path)
    x = data.calibration()[:8].numpy()
    assert error(run(engine, engine.lower(made, BATCH, 1), x), graph_logits(made, x)) < 4 / 127


@pytest.mark.integration
@pytest.mark.thorough
def test_openvino_does_not_crash_on_batch_norms_after_concatenations(data: RandomData, tmp_path: Path) -> None:
    engine, source = engine_named("openvino"), {"model": "dense", "weights": "random"}
    network = DenseNet(16, (2, 2), 32, num_classes=10).train()
    network(data.calibration()[:])
    made = make_artifact(configured.method("static"), network.eval(), data, engine.spec, source, tmp_path)
    file = engine.lower(made, BATCH, 1).folder / engine.file
    script = (
        f"import openvino; openvino.Core().compile_model({str(file)!r}, 'CPU', {{'INFERENCE_PRECISION_HINT': 'f32'}})"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0  # a crash would take this process along


def test_for_ncnn_layers_alone_read_integers_and_give_floats(data: RandomData) -> None:
    _, graph = converted(Ghost(), data, EngineSpec(placement="ncnn", activation="int8_symmetric"))
    read = [node for node in graph.graph.nodes if "dequantize_per_tensor" in str(node.target)]
    layers = [node for node in graph.graph.nodes if node.target in (aten.conv2d.default, aten.linear.default)]
    assert {user for node in read for user in node.users} == {*layers} and len(layers) == 5
    assert all(not node.args[2] for node in read), "no zero points"
    assert all("dequantize" in str(source.target) for layer in layers for source in layer.args[:2])
    (sum_,) = (node for node in graph.graph.nodes if node.target == aten.add.Tensor)
    assert not any("quantize" in str(source.target) for source in sum_.all_input_nodes)
