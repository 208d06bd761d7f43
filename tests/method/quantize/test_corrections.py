"""Equalisation keeps what a network computes and evens out its channels; bias correction restores mean outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from qexp.artifact import EngineSpec
from qexp.data.random import RandomData
from qexp.method.graph import export, folded_graph, graph_of
from qexp.method.layers import is_weighted
from qexp.method.quantize.corrections import CORRECTION_IMAGES, correct_bias, equalise
from qexp.method.quantize.fake_quantize import quantizers
from tests import configured
from tests.method.graphs import values

pytestmark = pytest.mark.integration  # compresses whole networks


def convolution(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    """With channels of very different ranges."""
    made = nn.Conv2d(inputs, outputs, 3, padding=1, **options)
    with torch.no_grad():
        made.weight.mul_(torch.logspace(-1, 1, outputs)[:, None, None, None])
    return made


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        convolution(3, 4), nn.ReLU(), convolution(4, 4, groups=4), nn.ReLU(), nn.AvgPool2d(2),
        convolution(4, 6, bias=False), nn.ReLU(),
        nn.MaxPool2d(2), convolution(6, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 10),
    ).eval()  # fmt: skip


def weights(graph: nn.Module, *names: str) -> list[Tensor]:
    return [graph.get_parameter(f"{name}.weight").detach() for name in names]


def test_equalisation_evens_out_neighbours_and_keeps_the_function(pretend_data: RandomData) -> None:
    graph = graph_of(export(plain(), pretend_data))
    x = pretend_data.calibration()[:]
    with torch.no_grad():
        before = graph(x)
        equalise(graph)
        torch.testing.assert_close(graph(x), before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))
    first, depthwise, second, third, linear = weights(graph, "0", "2", "5", "8", "12")
    original = weights(plain(), "0", "2", "5", "8", "12")
    # Of an output channel, and of what reads it: dimension 0 where a channel is convolved on its own.
    for one, other, channels in ((first, depthwise, 0), (depthwise, second, 1), (second, third, 1), (third, linear, 1)):
        ranges = one.abs().flatten(1).amax(1), other.abs().movedim(channels, 0).flatten(1).amax(1)
        torch.testing.assert_close(*ranges, rtol=0.02, atol=0)
    for old, new in zip(original, (first, depthwise, second, third, linear), strict=True):
        assert (old - new).abs().max() > 0.1 * old.abs().max()


def test_a_channel_of_zeros_stays(pretend_data: RandomData) -> None:
    network = nn.Sequential(
        convolution(3, 4), nn.ReLU(), convolution(4, 5), nn.Flatten(), nn.Linear(5 * 256, 10)
    ).eval()
    with torch.no_grad():
        network[0].weight[1], network[2].weight[:, 2] = 0, 0
        graph = graph_of(export(network, pretend_data))
        before = graph(pretend_data.calibration()[:])
        flattened = graph.get_parameter("4.weight").clone()
        equalise(graph)
        torch.testing.assert_close(graph(pretend_data.calibration()[:]), before, rtol=1e-4, atol=1e-4)
    assert torch.equal(graph.get_parameter("4.weight"), flattened), (
        "one channel there is 256 inputs of the linear layer"
    )


class Clipped(nn.Module):
    """relu6(s * x) is not s * relu6(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            convolution(3, 4), nn.ReLU6(), convolution(4, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Twice(nn.Module):
    """What the first layer computes is also added to the result."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = convolution(3, 4), convolution(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        return (y + self.second(y)).mean((2, 3))


@pytest.mark.parametrize("make", [Clipped, Twice])
def test_layers_that_cannot_be_scaled_stay(make: Callable[[], nn.Module], pretend_data: RandomData) -> None:
    network = make().eval()
    before = [value.clone() for value in network.state_dict().values()]
    graph = graph_of(export(network, pretend_data))
    equalise(graph)
    assert all(torch.equal(old, new) for old, new in zip(before, graph.state_dict().values(), strict=True))


def test_residual_branches_stay(pretend_data: RandomData, network: nn.Module) -> None:
    graph = folded_graph(network, pretend_data)
    old = {name: value.clone() for name, value in graph.named_parameters()}
    x = pretend_data.calibration()[:]
    with torch.no_grad():
        before = graph(x)
        equalise(graph)
        torch.testing.assert_close(graph(x), before, rtol=1e-3, atol=1e-3)
    changed = {name for name, value in graph.named_parameters() if not torch.equal(value, old[name])}
    inside = {f"blocks.{block}.body.{layer}.weight" for block in (0, 1) for layer in (0, 3)}
    assert {name for name in changed if name.endswith("weight")} == inside


def means(graph: GraphModule, x: Tensor) -> dict[str, Tensor]:
    """Mean output per channel of each layer by its node's name, in float64."""
    computed = values(graph, x)
    layers = [node.name for node in graph.graph.nodes if is_weighted(node)]
    return {name: computed[name].double().mean([d for d in range(computed[name].dim()) if d != 1]) for name in layers}


@pytest.mark.parametrize("residual", [False, True])
def test_bias_correction_restores_mean_outputs(residual: bool, pretend_data: RandomData, network: nn.Module) -> None:
    source = network if residual else plain()
    biases = {name: value.clone() for name, value in source.state_dict().items()}
    x = pretend_data.calibration()[:]
    wanted = means(folded_graph(source, pretend_data), x)
    rounded, corrected = (
        configured.method("static", bits=3, bias_correction=on).calibrated(source, pretend_data, EngineSpec())
        for on in (False, True)
    )
    off, shifted = means(rounded, x), means(corrected, x)
    assert wanted.keys() == shifted.keys() and len(wanted) == (7 if residual else 5)
    for name, mean in wanted.items():
        size = float(mean.abs().max())
        torch.testing.assert_close(shifted[name], mean, rtol=0, atol=1e-4 * size)
        assert (off[name] - mean).abs().max() > 2e-3 * size, "rounding had moved it"
    assert all(quantizer.enabled for quantizer in quantizers(corrected).values())
    assert all(torch.equal(value, biases[name]) for name, value in source.state_dict().items()), (
        "the network itself is not changed"
    )
    without_bias = [
        node for node in rounded.graph.nodes if is_weighted(node) and (len(node.args) < 3 or node.args[2] is None)
    ]
    assert len(without_bias) == (0 if residual else 1)
    for node in without_bias:
        bias = corrected.get_parameter(f"{node.name}_bias").double()
        torch.testing.assert_close(bias, bias_needed(corrected, node.name, wanted[node.name], x), rtol=1e-3, atol=1e-4)


def bias_needed(corrected: GraphModule, name: str, wanted: Tensor, x: Tensor) -> Tensor:
    """What a layer's mean output lacks without its bias."""
    bias = corrected.get_parameter(f"{name}_bias")
    kept = bias.detach().clone()
    with torch.no_grad():
        bias.zero_()
        missing = wanted - means(corrected, x)[name]
        bias.copy_(kept)
    return missing


def test_only_the_first_images_count(pretend_data: RandomData) -> None:
    x = pretend_data.calibration()[:]
    some = torch.cat([x] * (CORRECTION_IMAGES // len(x)))
    first, second = (
        configured.method("static", bits=3).calibrated(plain(), pretend_data, EngineSpec()) for _ in range(2)
    )
    correct_bias(first, some)
    correct_bias(second, torch.cat([some, 100 + x]))
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), second.parameters(), strict=True))
