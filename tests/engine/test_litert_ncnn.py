"""LiteRT and ncnn compute what graphs say, operator by operator and network by network, from files that qexp writes."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ai_edge_litert import schema_py_generated as schema
from torch import Tensor, nn

from qexp.artifact import Artifact
from qexp.data.random import RandomData
from qexp.engine.base import Engine
from qexp.measure.parity import times_rounding
from qexp.method.artifacts import make_artifact
from qexp.method.base import Method
from qexp.types import Unsupported
from tests import configured
from tests.engine.support import BATCH, engine_named, error, graph_logits, run
from tests.patterns.composed import Applied
from tests.tiers import more

pytestmark = pytest.mark.integration
ENGINES = ("litert", "ncnn")
STEPS = 4 / 127  # of the largest logit: a value on the edge of two steps may be rounded to the other side in any layer

Function = Callable[..., Tensor]


def wrapped(function: Function, *modules: nn.Module, channels: int = 8) -> nn.Module:
    """An operator on x[B,channels,16,16] between two convolutions, with a linear layer at the end."""
    first, last = nn.Conv2d(3, channels, 3, 1, 1), nn.LazyConv2d(10, 1)

    def forward(x: Tensor, first: nn.Module, last: nn.Module, *inner: nn.Module) -> Tensor:
        return last(function(first(x), *inner)).mean((2, 3))

    made = Applied(forward, first, last, *modules)
    with torch.no_grad():
        made(torch.zeros(1, 3, 16, 16))
    return made


def conv(*arguments: object, **options: object) -> nn.Module:
    return nn.Conv2d(*arguments, **options)  # type: ignore[arg-type]


def called(x: Tensor, inner: nn.Module) -> Tensor:
    return inner(x)


def layer(made: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: wrapped(called, made())


def function(made: Function) -> Callable[[], nn.Module]:
    return lambda: wrapped(made)


def flattened() -> nn.Module:
    """An image of several rows and columns, counted row by row within each channel."""
    first, last = nn.Conv2d(3, 4, 5, 4), nn.Linear(36, 10)
    return Applied(lambda x, first, last: last(F.relu(first(x)).flatten(1)), first, last)


def gated(x: Tensor, down: nn.Module, up: nn.Module) -> Tensor:
    """Squeeze and excitation."""
    return x * torch.sigmoid(up(F.relu(down(x.mean((2, 3), keepdim=True)))))


def tokens() -> nn.Module:
    """A linear layer on patches."""
    first, each, last = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 24), nn.Linear(24, 10)

    def forward(x: Tensor, first: nn.Module, each: nn.Module, last: nn.Module) -> Tensor:
        return last(F.gelu(each(first(x).flatten(2).transpose(1, 2))).mean(1))

    return Applied(forward, first, each, last)


# Each is a network around what it is named after.
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "stride": layer(lambda: conv(8, 16, 3, 2, 1)),
    "odd stride": layer(lambda: conv(8, 6, 3, 2, padding=(0, 1))),
    "dilation": layer(lambda: conv(8, 8, 3, 1, 2, dilation=2)),
    "oblong": layer(lambda: conv(8, 8, (1, 5), 1, (0, 2))),
    "same": layer(lambda: conv(8, 8, 4, padding="same")),
    "no bias": layer(lambda: conv(8, 8, 3, bias=False)),
    "depthwise": layer(lambda: conv(8, 8, 3, 1, 1, groups=8)),
    "depthwise stride": layer(lambda: conv(8, 8, 5, 2, 2, groups=8)),
    "depthwise multiplied": layer(lambda: conv(8, 24, 3, 1, 1, groups=8)),
    "groups": layer(lambda: conv(8, 16, 3, 1, 1, groups=2)),
    "relu6": layer(nn.ReLU6),
    "hardtanh": layer(lambda: nn.Hardtanh(-0.4, 0.3)),
    "leaky relu": layer(lambda: nn.LeakyReLU(0.1)),
    "sigmoid": layer(nn.Sigmoid),
    "silu": layer(nn.SiLU),
    "hardswish": layer(nn.Hardswish),
    "hardsigmoid": layer(nn.Hardsigmoid),
    "gelu": layer(nn.GELU),
    "elu": layer(nn.ELU),
    "tanh": layer(nn.Tanh),
    "softmax": function(lambda x: x.softmax(1)),
    "add": function(lambda x: x + F.relu(x)),
    "subtract": function(lambda x: x - F.relu(x)),
    "multiply": function(lambda x: x * F.relu(x)),
    "scalar": function(lambda x: (2.5 * x + 1) / 3),
    "max pool": layer(lambda: nn.MaxPool2d(3, 2, 1)),
    "max pool ceil": layer(lambda: nn.MaxPool2d(3, 2, ceil_mode=True)),
    "average pool": layer(lambda: nn.AvgPool2d(2)),
    "padded average pool": layer(lambda: nn.AvgPool2d(3, 2, 1)),
    "average pool ceil": layer(lambda: nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)),
    "average pool of the image alone": layer(lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
    "adaptive pool": layer(lambda: nn.AdaptiveAvgPool2d(4)),
    "mean": function(lambda x: x.mean((2, 3), keepdim=True)),
    "maximum": function(lambda x: x.amax((2, 3), keepdim=True)),
    "concatenate": function(lambda x: torch.cat([x, F.max_pool2d(x, 3, 1, 1)], 1)),
    "pad": function(lambda x: F.pad(x, (1, 0, 2, 1))),
    "slice": function(lambda x: x[:, 2:6, 1:, :-2]),
    "chunk": function(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)),
    "transpose": function(lambda x: x.transpose(2, 3)),
    "batch norm": lambda: wrapped(lambda x, norm: norm(F.relu(x)), nn.BatchNorm2d(8)),
    "squeeze and excitation": lambda: wrapped(gated, nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)),
    "flattened": flattened,
    "tokens": tokens,
}  # fmt: skip
QUICK = ("stride", "depthwise", "add", "average pool", "flattened")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RandomData:
    return configured.pretend_data(tmp_path_factory.mktemp("images"))


def lowered(engine: Engine, method: Method, network: nn.Module, data: RandomData, root: Path) -> Artifact:
    made = make_artifact(method, network, data, engine.spec, {"model": "small", "weights": "random"}, root)
    return engine.lower(made, BATCH, 1)


@pytest.mark.parametrize("method", ["none", "static"])
@pytest.mark.parametrize("name", [*QUICK, *more(*(name for name in NETWORKS if name not in QUICK))])
@pytest.mark.parametrize("engine", ENGINES)
def test_an_operator_gives_what_the_graph_says(
    engine: str, name: str, method: str, data: RandomData, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network, x = NETWORKS[name]().eval(), data.calibration()[:8].numpy()
    made = lowered(engine_named(engine), configured.method(method), network, data, tmp_path)
    found, expected = run(engine_named(engine), made, x), graph_logits(made, x)
    assert np.ptp(expected, axis=0).max() > 0.01 and found.shape == expected.shape == (8, 10)
    assert error(found, expected) < (STEPS if method == "static" else 1e-5)


def named(name: str) -> nn.Module:
    if name.startswith("timm/"):
        return pytest.importorskip("timm").create_model(name.removeprefix("timm/"), num_classes=10)
    return configured.network(name)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "name", ["lenet5", *more("resnet20", "mobilenet_v2", "vgg11", "timm/mobilenetv3_small_050", "timm/regnety_002")]
)
def test_a_network_gives_what_its_graph_says(engine: str, name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = configured.data(
        "random", images=32, num_classes=10, name="random", image_size=32, channels=3, cache_dir=str(tmp_path / "c"),
        calibration_images=16,
    )  # fmt: skip
    data.open()
    network, x = named(name).train(), data.calibration()[:8]
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:  # norms at the end of a branch that start at 0 would leave it out
                parameter.add_(0.3 * torch.rand_like(parameter))
        for _ in range(3):
            network(torch.randn(16, 3, 32, 32) * 1.5 + 0.3)
        own = network.eval()(x).numpy()
    for method, most in (("none", 0.0), ("static", 2.0)):
        made = lowered(engine_named(engine), configured.method(method), network, data, tmp_path)
        found, expected = run(engine_named(engine), made, x.numpy()), graph_logits(made, x.numpy())
        assert error(found, expected) < 1e-4 if not most else times_rounding(found, expected, own) < most


class Residual(nn.Module):
    """A sum of two branches, with a stride that halves an even number of rows and columns."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.way = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(8, 16, 1, 2)
        self.next, self.head = nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(F.relu6(self.next(self.body(x)) + self.way(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def residual(data: RandomData, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    torch.manual_seed(0)
    network, root = Residual().eval(), tmp_path_factory.mktemp("residual")
    return lambda engine: lowered(engine_named(engine), configured.method("static"), network, data, root)


def quantizers(artifact: Artifact) -> set[tuple[float, int]]:
    """The scales, in single precision, and zero points of the graph's activations."""
    graph = torch.export.load(artifact.folder / artifact.graph).graph
    nodes = [node for node in graph.nodes if "quantize_per_tensor" in str(node.target)]
    return {(float(np.float32(node.args[1])), int(node.args[2])) for node in nodes}


def weights(artifact: Artifact) -> list[np.ndarray]:
    state = torch.export.load(artifact.folder / artifact.graph).state_dict
    return [value.numpy() for value in state.values() if value.dtype == torch.int8]


def test_litert_computes_in_integers_with_the_graphs_scales(residual: Callable[[str], Artifact]) -> None:
    artifact = residual("litert")
    model = schema.ModelT.InitFromPackedBuf((artifact.folder / f"model-batch{BATCH}.tflite").read_bytes())
    (graph,) = model.subgraphs
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}

    def of(tensor: Any) -> str:
        return {0: "float", 2: "int32", 9: "int8"}[graph.tensors[tensor].type]

    found = Counter(
        (names[model.operatorCodes[each.opcodeIndex].builtinCode], of(each.inputs[0]), of(each.outputs[0]))
        for each in graph.operators
    )
    assert found == {
        ("QUANTIZE", "float", "int8"): 1, ("TRANSPOSE", "int8", "int8"): 1, ("PAD", "int8", "int8"): 1,
        ("CONV_2D", "int8", "int8"): 3, ("DEPTHWISE_CONV_2D", "int8", "int8"): 1, ("ADD", "int8", "int8"): 1,
        ("MEAN", "int8", "int8"): 1, ("RESHAPE", "int8", "int8"): 1, ("FULLY_CONNECTED", "int8", "int8"): 1,
        ("DEQUANTIZE", "int8", "float"): 1,
    }  # fmt: skip
    computed = [tensor for tensor in graph.tensors if tensor.type == schema.TensorType.INT8 and not tensor.buffer]
    scales = {(float(t.quantization.scale[0]), int(t.quantization.zeroPoint[0])) for t in computed}
    assert scales == quantizers(artifact) and len(scales) > 4
    stored = [
        np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.int8)
        for tensor in graph.tensors
        if tensor.type == schema.TensorType.INT8 and tensor.buffer
    ]
    assert sorted(sorted(each.tolist()) for each in stored) == sorted(
        sorted(each.ravel().tolist()) for each in weights(artifact)
    )


def test_ncnn_computes_layers_in_integers_with_the_graphs_scales(residual: Callable[[str], Artifact]) -> None:
    artifact = residual("ncnn")
    with zipfile.ZipFile(artifact.folder / "model.ncnn.zip") as archive:
        text, numbers = archive.read("model.ncnn.param").decode(), archive.read("model.ncnn.bin")
    lines = [line.split() for line in text.splitlines()[2:] if not line.startswith("Pooling")]  # its 8 is a width
    layers = [(kind, word) for kind, *words in lines for word in words if word.startswith("8=")]
    # Two convolutions read the integers of the first, and the depthwise one those of the second. The sum reads floats.
    assert layers == [
        ("Convolution", "8=102"), ("Convolution", "8=102"), ("ConvolutionDepthWise", "8=1"), ("Convolution", "8=2"),
        ("InnerProduct", "8=2"),
    ]  # fmt: skip
    winograd = 1 << 6  # which overflows with weights of 8 bits
    assert all(f"31={winograd + 7}" in line for line in lines if any(word.startswith("8=") for word in line))
    assert all(scale > 0 and not zero for scale, zero in quantizers(artifact))
    assert all(np.float32(1 / scale).tobytes() in numbers for scale, _ in quantizers(artifact))
    assert all(values.tobytes() in numbers for values in weights(artifact))


def test_a_bias_too_large_for_its_scale_fits_litert(data: RandomData, tmp_path: Path) -> None:
    """A channel without weights whose bias is more than 32 bits hold in units of the smallest scale."""
    torch.manual_seed(0)
    network = wrapped(called, nn.Conv2d(8, 8, 3))
    inner = network.inner[2]
    with torch.no_grad():
        inner.weight[0], inner.bias[0] = 0.0, 3.0
    made = lowered(engine_named("litert"), configured.method("static"), network.eval(), data, tmp_path)
    x = data.calibration()[:8].numpy()
    assert error(run(engine_named("litert"), made, x), graph_logits(made, x)) < STEPS


@pytest.mark.parametrize(
    ("engine", "inner", "message"),
    [
        ("litert", nn.GroupNorm(2, 8), "litert has no operator for group_norm"),
        ("ncnn", nn.GroupNorm(2, 8), "ncnn has no operator for group_norm"),
        ("litert", nn.MaxPool2d(2, dilation=2), "litert has no operator for max_pool2d with a dilation"),
        ("ncnn", nn.MaxPool2d(2, dilation=2), "ncnn has no operator for max_pool2d with a dilation or a divisor"),
    ],
)
def test_what_a_file_cannot_hold_is_named(
    engine: str, inner: nn.Module, message: str, data: RandomData, tmp_path: Path
) -> None:
    with pytest.raises(Unsupported, match=message):
        lowered(engine_named(engine), configured.method("none"), wrapped(called, inner).eval(), data, tmp_path)


def test_a_damaged_file_is_an_error_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "model.ncnn.zip").write_bytes(b"nothing")
    (tmp_path / "model-batch2.tflite").write_bytes(b"nothing" * 10)
    for name in ENGINES:
        with pytest.raises((ValueError, zipfile.BadZipFile, RuntimeError)):
            engine_named(name).open(tmp_path / engine_named(name).file_name(BATCH, 1), 1)
