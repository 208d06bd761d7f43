"""Networks as other people write them: graphs compute what these do, or one sentence says why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn

from qexp.artifact import EngineSpec
from qexp.data.random import RandomData
from qexp.method.batch_norms import fold_batch_norms
from qexp.method.graph import count_macs, export, graph_of, layer_table
from qexp.method.verification import TOLERANCE, check_alone, verify
from qexp.model.base import bake
from qexp.model.outputs import network_for
from qexp.types import UserError
from tests import configured
from tests.patterns import operators, weights
from tests.patterns.composed import Applied
from tests.tiers import more

pytestmark = pytest.mark.integration  # compresses whole networks
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "two norms share a convolution": weights.SharedConvTwoNorms,
    "one of two readers is a norm": weights.SharedConvOneNorm,
    "one convolution with several names": weights.SeveralNames,
    "norms without weights": weights.PlainNorms,
    "weight norm": weights.WeightNorm,
    "former weight norm": lambda: weights.WeightNorm(kind="old"),
    "spectral norm": lambda: weights.WeightNorm(kind="spectral"),
    "standardised weights": weights.Standardised,
    "bare weights": weights.Functional,
    "norms with activations": weights.NormActs,
    "linear and norm": weights.LinearNorm,
    "norm over tokens": lambda: weights.LinearNorm(tokens=True),
    "own normalisation": weights.OwnNormalisation,
    "fixed filters": operators.AntiAliased,
    "torch's encoder": operators.TinyViT,
    "own attention": operators.SdpaViT,
    "a class token that modules change": operators.ClassToken,
    "same padding": operators.EvenSame,
    "pools with ceil_mode": operators.CeilPools,
    "channel shuffle": operators.Shuffle,
    "view of a fixed size": operators.FixedView,
    "group norm and PReLU": operators.Groups,
    "gates": operators.Gate,
    "ConvNeXt": operators.Next,
}
# Those of which unit tests quantise the graph: one of each kind, and none that another test here exports anyway.
UNUSUAL = ("one of two readers is a norm", "weight norm", "bare weights", "own attention", "gates", "channel shuffle")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> RandomData:
    folder = tmp_path_factory.mktemp("digits")
    made = configured.data("random", images=64, image_size=28, channels=1, calibration_images=32, cache_dir=str(folder))
    made.open()
    return made


def shaken(network: nn.Module, data: RandomData) -> nn.Module:
    """The network in eval mode, with batch norms that have seen images."""
    images = data.calibration()[:]
    with torch.no_grad():
        for _ in range(10):
            network.train()(images)
    return network.eval()


def made(name: str, data: RandomData) -> nn.Module:
    torch.manual_seed(0)
    return bake(shaken(NETWORKS[name](), data))


def signal_to_noise(network: nn.Module, file: Path, images: Tensor) -> float:
    """Decibels of the network's logits over the error of the graph in a file, in float64."""
    with torch.no_grad():
        exact, found = network(images).double(), torch.export.load(file).module()(images).double()
    return float(10 * torch.log10(exact.square().sum() / (exact - found).square().sum()))


@pytest.mark.parametrize(
    ("method", "spec", "least_db"),
    [
        ("static", EngineSpec(), 18),
        *more(("none", EngineSpec(), 100), ("half", EngineSpec(half=("bfloat16",)), 35)),
    ],
)
@pytest.mark.parametrize("name", [*UNUSUAL, *more(*(name for name in NETWORKS if name not in UNUSUAL))])
def test_a_graph_computes_what_the_network_does(
    name: str, method: str, spec: EngineSpec, least_db: float, digits: RandomData, tmp_path: Path
) -> None:
    network, applied = made(name, digits), configured.method(method)
    found = applied.apply(network, digits, applied.resolve(spec), tmp_path)
    assert signal_to_noise(network, tmp_path / found.graph, digits.calibration()[:]) > least_db
    assert count_macs(network, digits) >= sum(layer.macs for layer in found.layers) > 0
    if method != "none":
        computed = {layer.name for layer in found.layers if layer.kind in ("conv2d", "linear")}
        assert {layer.name for layer in found.layers if layer.quantized} >= computed, "counted where it happens"


QUICK: dict[str, Any] = {"recipe": {"epochs": 0}, "epochs_between": 0}


@pytest.mark.parametrize(
    ("name", "method", "options"),
    [
        ("norm over tokens", "static", {"bias_correction": True, "equalisation": True}),
        ("bare weights", "mixed", {}),
        ("fixed filters", "reconstruct", {"iterations": 2}),
        ("norms without weights", "qat", {"recipe": {"epochs": 1}}),
        ("group norm and PReLU", "prune_channels", QUICK),
        ("view of a fixed size", "prune_channels", QUICK),
        ("gates", "prune_channels", QUICK),
    ],
)
def test_other_methods_take_it_too(
    name: str, method: str, options: dict[str, Any], digits: RandomData, tmp_path: Path
) -> None:
    network, applied = made(name, digits), configured.method(method, **options)
    found = applied.apply(network, digits, applied.resolve(EngineSpec()), tmp_path)
    if method == "prune_channels":
        assert found.network and 2 * count_macs(found.network, digits) <= count_macs(network, digits)
        network = found.network
    if method != "qat":  # training on pretend images leads anywhere
        assert signal_to_noise(network, tmp_path / found.graph, digits.calibration()[:]) > 8
    assert torch.export.load(tmp_path / found.graph).module()(digits.calibration()[:]).isfinite().all()


def test_what_pruning_cannot_change_is_one_sentence(digits: RandomData, tmp_path: Path) -> None:
    for method in ("prune", "cluster"):
        applied = configured.method(method, recipe={"epochs": 0})
        with pytest.raises(UserError, match="Functional has no module .* whose weight could be"):
            applied.apply(made("bare weights", digits), digits, EngineSpec(), tmp_path)


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("name", ["two norms share a convolution", "norms with activations", "norm over tokens"])
def test_batch_norms_are_gone_and_nothing_has_changed(name: str, fuse: bool, digits: RandomData) -> None:
    network, images = made(name, digits), digits.calibration()[:]
    graph = fold_batch_norms(graph_of(export(network, digits)), fuse)
    assert not any(node.target == torch.ops.aten.batch_norm.default for node in graph.graph.nodes)
    torch.testing.assert_close(graph(images), network(images), rtol=1e-4, atol=1e-5)


def test_a_wrong_graph_is_refused_at_the_module_where_it_parts(digits: RandomData) -> None:
    network = made("own normalisation", digits)
    graph = graph_of(export(network, digits))
    graph.get_submodule("b.0").weight = nn.Parameter(1.01 * network.b[0].weight)  # type: ignore[index,union-attr]
    with pytest.raises(UserError, match=r"The graph of OwnNormalisation computes something else .* module 'b.0'"):
        verify(graph, network, digits.calibration()[:], "The graph")


class Sensitive(nn.Module):
    """Makes much of the last digits of its input, as deep networks with random weights do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 8, 7, 7), nn.BatchNorm2d(8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        for _ in range(10):
            x = torch.sin(3 * x)
        return self.fc(x.mean((2, 3)))


def test_rounding_alone_is_no_other_computation(digits: RandomData) -> None:
    torch.manual_seed(0)
    network, images = shaken(Sensitive(), digits), digits.calibration()[:]
    graph = fold_batch_norms(graph_of(export(network, digits)))
    with torch.no_grad():
        error = (graph(images[:8]) - network(images[:8])).abs().max() / network(images[:8]).abs().max()
    assert error > TOLERANCE, "otherwise nothing is tested"
    verify(graph, network, images, "The graph")
    graph.get_submodule("conv").bias.data += 1e-3  # type: ignore[union-attr,operator]
    with pytest.raises(UserError, match=r"The graph of Sensitive computes something else"):
        verify(graph, network, images, "The graph")


class Dropping(nn.Module):
    """Drops values in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(784, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(F.dropout(x.flatten(1)))


def test_a_network_that_is_random_is_refused(digits: RandomData) -> None:
    with pytest.raises(UserError, match=r"other logits for the same images .* F.dropout needs training=self.training"):
        export(Dropping().eval(), digits)

    with pytest.raises(UserError, match=r"other logits for the same images"):
        check_alone(Dropping().eval(), digits.calibration()[:])


UNTRACEABLE: dict[str, Callable[[Tensor], Tensor]] = {
    r"forward fixes the number of images. Take x.shape\[0\]": lambda x: x.reshape(len(x), -1),
    "forward decides by the values of a tensor": lambda x: 2 * x if x.abs().sum() > 3 else x,
    "decides by the values of a tensor, as .* and `.item": lambda x: x.flatten(1) * float(x.max().item()),
    r"forward leaves torch by .numpy\(\)": lambda x: torch.from_numpy(x.numpy()),
}


@pytest.mark.parametrize("sentence", UNTRACEABLE)
def test_what_cannot_be_traced_is_said_in_words_of_the_network(sentence: str, digits: RandomData) -> None:
    with pytest.raises(UserError, match=f"torch.export cannot trace Applied: .*{sentence}"):
        export(Applied(UNTRACEABLE[sentence]), digits)


class AnyArguments(nn.Module):
    """Its forward has no name for the images."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(784, 10)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.layer(inputs[0].flatten(1))


def test_forward_may_take_anything_and_return_several_things(digits: RandomData, tmp_path: Path) -> None:
    several = network_for(
        OmegaConf.create({"_target_": "tests.patterns.weights.Simple", "id": "net", "answer": "tuple"}), digits.spec
    )
    for network in (AnyArguments(), several):
        shaken(network, digits)
        found = configured.method("static").apply(network, digits, EngineSpec(), tmp_path)
        assert signal_to_noise(network, tmp_path / found.graph, digits.calibration()[:]) > 18


class Computing(nn.Module):
    """Weights that are computed from bare ones, one of them changed in place at each call."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.kernel, self.in_place = nn.Parameter(torch.randn(10, 1, 3, 3)), in_place

    def forward(self, x: Tensor) -> Tensor:
        weight = self.kernel * 2
        if self.in_place:
            weight.mul_(0.5)
        return F.conv2d(x, weight).mean((2, 3))


@pytest.mark.parametrize("in_place", [False, True])
def test_weights_that_belong_to_no_module_stay_as_they_are(in_place: bool, digits: RandomData) -> None:
    network, images = Computing(in_place).eval(), digits.calibration()[:]
    graph = graph_of(export(network, digits))
    for _ in range(3):
        torch.testing.assert_close(graph(images), network(images))
    assert layer_table(graph, network, digits) == (), "its multiply-accumulates count as those of no layer"


def test_logits_that_are_not_finite_are_told(digits: RandomData) -> None:
    network = made("own normalisation", digits)
    nn.init.constant_(network.fc.bias, torch.nan)  # type: ignore[union-attr,arg-type]
    with pytest.raises(UserError, match="logits that are not finite"):
        check_alone(network, digits.calibration()[:])


def test_statistics_of_the_batch_are_refused_by_name(digits: RandomData) -> None:
    network = shaken(weights.NoStats(), digits)
    with pytest.raises(UserError, match=r"if other images are beside it.*: b1, b2 compute statistics of the batch"):
        check_alone(network, digits.calibration()[:])
    check_alone(made("group norm and PReLU", digits), digits.calibration()[:])


def test_attention_is_counted(digits: RandomData) -> None:
    """Multiply-accumulates by hand: 16 patches of 7x7 and a class token, 48 wide, in one block of four heads."""
    network, tokens, width = made("torch's encoder", digits), 17, 48
    linear = tokens * (width * 3 * width + width * width + 2 * width * 2 * width)
    products = 2 * tokens * tokens * width
    assert count_macs(network, digits) == 16 * 49 * width + linear + products + width * 10
    layers = layer_table(graph_of(export(network, digits)), network, digits)
    by_name = {layer.name: layer.macs for layer in layers}
    assert by_name["blocks.0.self_attn.in_proj_weight"] == tokens * width * 3 * width
    assert by_name["blocks.0.self_attn.out_proj"] == tokens * width * width
    assert sum(by_name.values()) == count_macs(network, digits) - products


def test_layers_of_bare_weights_are_named_after_them(digits: RandomData) -> None:
    network: Any = made("bare weights", digits)
    layers = layer_table(graph_of(export(network, digits)), network, digits)
    assert [(layer.name, layer.kind, layer.parameters, layer.macs) for layer in layers] == [
        ("w1", "conv2d", 144, 144 * 14 * 14), ("w2", "conv2d", 4608, 4608 * 7 * 7), ("w3", "linear", 320, 320),
    ]  # fmt: skip
