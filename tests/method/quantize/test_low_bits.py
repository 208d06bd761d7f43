"""What artifacts of other bit-widths than 8 round to how many bits, hold in their files, and compute."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qexp.artifact import Artifact, EngineSpec
from qexp.data.random import RandomData
from qexp.measure.size import tensor_bytes
from qexp.method.artifacts import make_artifact
from qexp.method.bits import BitWidths, plan_bits
from qexp.method.quantize.fake_quantize import FakeQuantize, WeightFakeQuantize, quantizers
from qexp.method.quantize.observers import OBSERVERS
from qexp.types import Unsupported, UserError
from tests import configured
from tests.engine.support import NAMES, engine_named, graph_logits
from tests.method.training import SOURCE
from tests.tiers import more

LAYERS = [
    "stem.0", "blocks.0.body.0", "blocks.0.body.3", "blocks.1.body.0", "blocks.1.body.3", "blocks.1.shortcut.0",
    "classifier",
]  # fmt: skip
aten = torch.ops.aten


@pytest.mark.parametrize(
    ("given", "widths", "text"),
    [(8, (8, 8), "int8"), ("4", (4, 4), "int4"), ("w4a8", (4, 8), "w4a8"), ("w2a32", (2, 32), "w2a32")],
)
def test_bits_are_of_weights_and_activations(given: int | str, widths: tuple[int, int], text: str) -> None:
    parsed = BitWidths.parse(given)
    assert (parsed.weight, parsed.activation) == widths and str(parsed) == text


@pytest.mark.parametrize("bits", [0, 1, 33, -4, "w4", "a8", "w4a1", "w64a8", "4.5", "int4", ""])
def test_bits_that_mean_nothing_are_an_error(bits: int | str) -> None:
    with pytest.raises(UserError, match=f"bits={bits} is out of range"):
        configured.method("static", bits=bits)


@pytest.mark.parametrize("bits", [9, 16, 32, "w16a8", "w8a16"])
def test_bits_that_are_no_integers_are_unsupported(bits: int | str) -> None:
    with pytest.raises(Unsupported, match=f"2 to 8 bits.* not at {bits}"):
        configured.method("static", bits=bits).resolve(EngineSpec())


@pytest.mark.parametrize(
    "options",
    [{"first_last_bits": 16}, {"first_last_bits": 1}, {"add_bits": 16}, {"add_bits": 1}, {"layer_bits": {"stem.0": 16}},
                {"layer_bits": {"*": "w8a9"}}, {"group_size": 0}, {"group_size": -8}],
)  # fmt: skip
def test_options_out_of_range_are_an_error(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="out of range"):
        configured.method("static", bits=4, **options)


def test_the_first_and_last_layer_keep_more_bits() -> None:
    def planned(*options: Any) -> list[str]:
        return [str(bits) for bits in plan_bits(["a.first", "a.middle", "b.middle", "last"], *options).values()]

    assert planned(BitWidths(4, 4)) == ["int4", "int4", "int4", "int4"]
    assert planned(BitWidths(4, 32), 8) == ["w8a32", "w4a32", "w4a32", "w8a32"]
    assert planned(BitWidths(8, 8), 4) == ["int8", "int8", "int8", "int8"]
    assert planned(BitWidths(4, 4), 8, {"*middle": "w3a5", "b.*": 6, "last": 2}) == ["int8", "w3a5", "int6", "int2"]
    with pytest.raises(UserError, match=r"layer_bits: no layer is called 'a.midle'. did you mean 'a.middle'"):
        planned(BitWidths(4, 4), 8, {"a.midle": 8})


CASES: dict[
    str, tuple[dict[str, Any], str, str, str]
] = {  # options, formats of the first and last layer, of the others, label
    "4": ({"bits": 4}, "int8 uint8", "int4 uint4", "static int4"),
    "w4a8": ({"bits": "w4a8"}, "int8 uint8", "int4 uint8", "static w4a8"),
    "w4a32": ({"bits": "w4a32"}, "int8 float32", "int4 float32", "static w4a32"),
    "2": ({"bits": 2, "first_last_bits": None}, "int2 uint2", "int2 uint2", "static int2"),
    "groups": ({"bits": "w4a32", "group_size": 16}, "int8 float32", "int4 float32", "static w4a32"),
    "layers": ({"bits": 8, "layer_bits": {"*.*.*": "w3a6"}}, "int8 uint8", "int3 uint6", "static int8"),
}


@pytest.mark.integration
@pytest.mark.parametrize("name", ["layers", *more("w4a8", "4", "w4a32", "2", "groups")])
def test_an_artifact_holds_packed_weights(
    name: str, pretend_data: RandomData, network: nn.Module, tmp_path: Path
) -> None:
    options, edge, inner, label = CASES[name]
    before = copy.deepcopy(network.state_dict())
    artifact = make_artifact(
        configured.method("static", **options), network, pretend_data, EngineSpec(), SOURCE, tmp_path
    )
    expected = {name: edge if name in (LAYERS[0], LAYERS[-1]) else inner for name in LAYERS}
    assert artifact.simulated and artifact.label == label
    assert {layer.name: f"{layer.weight} {layer.activation}" for layer in artifact.layers} == expected
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items()), (
        "the network itself is not changed"
    )

    program = torch.export.load(artifact.folder / artifact.graph)
    state = program.state_dict
    packed = sorted(value.numel() for name, value in state.items() if value.dtype == torch.uint8)
    shapes = {name: tuple(network.get_submodule(name).weight.shape) for name in LAYERS}
    group = options.get("group_size", 1)
    padded = {name: shape[0] * -(-int(np.prod(shape[1:])) // group) * group for name, shape in shapes.items()}
    assert packed == sorted(-(-padded[name] // 8) * int(expected[name][3]) for name in LAYERS)
    assert tensor_bytes(artifact.folder / artifact.graph) == sum(value.nbytes for value in state.values())
    assert not {tuple(value.shape) for value in state.values() if value.is_floating_point()} & set(shapes.values()), (
        "no weight in fp32"
    )

    x = pretend_data.calibration()[:].numpy()
    with torch.no_grad():
        answer, own = (run(torch.from_numpy(x)).numpy() for run in (program.module(), network))
    noise = ((answer - own) ** 2).sum() / (own**2).sum()
    assert 1e-6 < noise < (0.7 if options["bits"] == 2 else 0.05)
    if inner.endswith("float32"):
        np.testing.assert_allclose(answer, weights_rounded(network, options.get("group_size"), x), rtol=1e-3, atol=1e-4)
    for name in NAMES:
        if name != "eager":
            with pytest.raises(Unsupported, match=f"no kernels for {label}.*engine=eager"):
                engine_named(name).lower(artifact, 1, 1)
    assert configured.engine("eager").lower(artifact, 1, 1).files == artifact.files, "eager runs it as it is"


def weights_rounded(network: nn.Module, group: int | None, x: np.ndarray) -> np.ndarray:
    """Logits of the network with batch norms folded and weights rounded in float64: 8 bits at either end, 4 between."""
    rounded = copy.deepcopy(network).double()
    for name in LAYERS:
        layer = rounded.get_submodule(name)
        weight = layer.weight.detach().numpy()
        if name != LAYERS[-1]:
            parent, _, index = name.rpartition(".")
            norm = rounded.get_submodule(f"{parent}.{int(index) + 1}")
            factor = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()
            weight = weight * factor.numpy()[:, None, None, None]
            layer.bias = nn.Parameter((norm.bias - norm.running_mean * factor).detach())
            rounded.set_submodule(f"{parent}.{int(index) + 1}", nn.Identity())
        low, high = (-127, 127) if name in (LAYERS[0], LAYERS[-1]) else (-8, 7)
        flat = weight.reshape(len(weight), -1)
        for channel in flat:
            for start in range(0, len(channel), group or len(channel)):
                part = channel[start : start + (group or len(channel))]
                scale = max(part.max() / high, part.min() / low)
                part[:] = np.clip(np.rint(part / scale), low, high) * scale
        layer.weight = nn.Parameter(torch.from_numpy(flat.reshape(weight.shape)))
    with torch.no_grad():
        return rounded(torch.from_numpy(x).double()).numpy()


@pytest.mark.integration
def test_four_bits_take_half_the_file_of_eight(pretend_data: RandomData, tmp_path: Path) -> None:
    network = configured.network("resnet8", blocks=[1], widths=[64]).eval()

    def size(artifact: Artifact) -> int:
        return (artifact.folder / artifact.graph).stat().st_size

    wide, narrow = (
        size(
            make_artifact(configured.method("static", bits=bits), network, pretend_data, EngineSpec(), SOURCE, tmp_path)
        )
        for bits in (8, 4)
    )
    assert wide > 2 * 64 * 64 * 9 and narrow < wide - 0.4 * 2 * 64 * 64 * 9


def quantised(x: Tensor, low: Tensor, high: Tensor, levels: int) -> Tensor:
    """x in float64 rounded to unsigned integers over the range low..high, which is widened to hold 0."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / levels
    zero_point = (-low / scale).round()
    return ((x / scale).round().add(zero_point).clamp(0, levels) - zero_point) * scale


def test_activations_are_rounded_to_their_bits(pretend_data: RandomData, tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16 * 16, 10)).eval()
    method = configured.method("static", bits="w32a3", first_last_bits=None, observer="minmax")
    artifact = make_artifact(method, network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    x = pretend_data.calibration()[:]
    answer = torch.from_numpy(graph_logits(artifact, x.numpy())).double()
    network, x = network.double(), x.double()
    with torch.no_grad():
        own, logits = network[:2](x), network(x)  # ranges are those in floating point
        hidden = quantised(network[:2](quantised(x, x.min(), x.max(), 7)), own.min(), own.max(), 7)
        expected = quantised(network[2:](hidden), logits.min(), logits.max(), 255)
    assert hidden.unique().numel() == 8
    step = (logits.max() - logits.min()) / 255
    # A value on the edge of two of the eight levels may fall on either side in float32, and moves all logits of its
    # image.
    assert ((answer - expected).abs() < 1.01 * step).double().mean() > 0.95


def spec_of(prepared: GraphModule, node: Any) -> tuple[int, str]:
    """Bits that a tensor is rounded to before it is read, and what was rounded."""
    module = prepared.get_submodule(str(node.target))
    assert isinstance(module, FakeQuantize) and isinstance(node.args[0], Node)
    return module.grid.bits, node.args[0].op


def test_a_residual_has_eight_bits_and_the_convolution_beside_it_four(
    pretend_data: RandomData, network: nn.Module
) -> None:
    prepared = configured.method("static", bits=4).calibrated(network, pretend_data, EngineSpec())
    read = [node for node in prepared.graph.nodes if node.op == "call_function"]
    adds, layers = (
        [n for n in read if n.target in kinds]
        for kinds in ([aten.add.Tensor], [aten.conv2d.default, aten.linear.default])
    )
    assert len(adds) == 2 and all(spec_of(prepared, source)[0] == 8 for node in adds for source in node.args)
    data, weights = ([spec_of(prepared, node.args[index])[0] for node in layers] for index in (0, 1))
    assert len(data) == 7 and sorted(data) == sorted(weights) == [4] * 5 + [8] * 2
    # The block's input is rounded once, to 8 bits, and from there to 4 for the convolution.
    convolution, shortcut = layers[1].args[0], adds[0].args[1]
    assert convolution.args[0] is shortcut and spec_of(prepared, convolution) == (4, "call_module")


@pytest.mark.parametrize("before", [False, True])
def test_rounding_can_come_before_the_activation(before: bool, pretend_data: RandomData, network: nn.Module) -> None:
    prepared = configured.method("static", bits=4, quantize_before_activation=before).calibrated(
        network, pretend_data, EngineSpec()
    )
    relus = [node for node in prepared.graph.nodes if node.target in (aten.relu.default, aten.relu_.default)]
    assert len(relus) == 5 and {node.args[0].op for node in relus} == {"call_module" if before else "call_function"}
    for node in relus:
        kept = [prepared.get_submodule(str(user.target)) for user in node.users if user.op == "call_module"]
        assert kept and all(isinstance(module, FakeQuantize) for module in kept)
        if before:
            rounded = prepared.get_submodule(str(node.args[0].target))
            assert rounded in kept and rounded.scale is not None, "the activation keeps the scale of its input"


@pytest.mark.parametrize("name", OBSERVERS)
def test_every_observer_finds_scales(name: str, pretend_data: RandomData) -> None:
    torch.manual_seed(0)
    network = configured.network("resnet8", blocks=[1], widths=[4]).eval()
    prepared = configured.method("static", bits=4, observer=name, weight_observer=name, percentile=99).calibrated(
        network, pretend_data, EngineSpec()
    )
    x = pretend_data.calibration()[:]
    for quantizer in quantizers(prepared).values():
        per_channel = isinstance(quantizer, WeightFakeQuantize)
        assert len(quantizer.scale) > 1 if per_channel else len(quantizer.scale) == 1
        assert bool((quantizer.scale > 0).all()) and bool(quantizer.scale.isfinite().all())
    with torch.no_grad():
        noise = (prepared(x) - network(x)).square().sum() / network(x).square().sum()
    assert 0 < noise < 0.25


def test_what_a_placement_of_its_own_cannot_show_is_unsupported() -> None:
    for options in ({"fuse": False}, {"quantize_before_activation": True}):
        with pytest.raises(Unsupported, match="needs an engine with integer kernels of its own"):
            configured.method("static", **options).resolve(EngineSpec(placement="x86_inductor"))


def test_weights_with_zero_points_are_simulated() -> None:
    assert (
        not configured.method("static", weight_symmetric=False).for_engines and configured.method("static").for_engines
    )
