"""Smoothing evens out the channels of activations and keeps what a network computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from qexp.data.random import RandomData
from qexp.method.graph import folded_graph
from qexp.method.quantize.smoothing import scales, smooth, smoothable, within
from tests.method.graphs import values

pytestmark = pytest.mark.integration  # compresses whole networks


def test_scales_are_those_of_the_paper() -> None:
    """Equation 4 in float64, up to the factor that leaves the largest value as it is."""
    generator = np.random.default_rng(0)
    activation, weight = np.exp(generator.normal(size=(2, 50)) * 2)
    for strength in (0.5, 0.3):
        wanted = activation**strength / weight ** (1 - strength)
        wanted *= (activation / wanted).max() / activation.max()
        found = scales(torch.tensor(activation).float(), torch.tensor(weight).float(), strength)
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5)
    even = torch.tensor(activation).float() / scales(torch.tensor(activation), torch.tensor(weight), 1.0)
    np.testing.assert_allclose(even.numpy(), activation.max(), rtol=1e-5)


def test_dead_channels_and_limits_stay() -> None:
    activation, weight = torch.tensor([0.0, 2.0, 1.0, 8.0]), torch.tensor([1.0, 0.0, 1.0, 2.0])
    found = scales(activation, weight, 0.5)
    assert found[0] == found[1] == 1 and found.isfinite().all()
    assert torch.equal(scales(torch.zeros(3), torch.ones(3), 0.5), torch.ones(3))
    limited = within(torch.tensor([0.1, 0.1, 3.0, 0.9]), torch.tensor([6.0, 3.0, 3.0, 3.0]), 6.0)
    torch.testing.assert_close(limited, torch.tensor([1.0, 0.5, 3.0, 0.9]))


def uneven(network: nn.Module, reach: float = 1.5) -> nn.Module:
    """The network in eval mode, with norms, weights and biases whose channels differ by powers of ten."""
    torch.manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(getattr(module, "weight", None), Tensor):
                count = len(module.weight)
                spread = torch.logspace(-reach, 0, count)[torch.randperm(count)]
                module.weight.mul_(spread.reshape([-1] + [1] * (module.weight.dim() - 1)))
            if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)) and module.bias is not None:
                module.bias.normal_()
    return network.eval()


class Mobile(nn.Module):
    """Depthwise and grouped layers with ReLU6 between them."""

    def __init__(self, activation: Callable[[], nn.Module] = nn.ReLU6) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3), activation(), nn.Conv2d(8, 8, 3, groups=8, padding=1), activation(),
            nn.Conv2d(8, 12, 1, groups=2), activation(), nn.Conv2d(12, 12, 3, groups=3), nn.MaxPool2d(2),
            nn.Conv2d(12, 8, 1), nn.PReLU(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Tokens(nn.Module):
    """Norms before linear layers, in windows that are shifted, and a class token."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.first, self.second, self.last = norm(8), norm(8), norm(8)
        self.query, self.value, self.out, self.head = (nn.Linear(8, n) for n in (8, 8, 8, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        y = torch.roll(F.pad(self.first(x), (0, 0, 0, 0, 0, 0)), (-1, -1), (1, 2))
        y = y.view(-1, 2, 2, 2, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 8)
        y = (self.query(y).softmax(-1) * self.value(y)).reshape(-1, 16, 8)
        x = x.reshape(-1, 16, 8) + F.gelu(self.out(self.second(y)))
        return self.head(self.last(x)[:, 0])


class Preactivated(nn.Module):
    """A batch norm and a group norm that no layer can take up, which convolutions read."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.groups = nn.BatchNorm2d(3), nn.GroupNorm(2, 8)
        self.one, self.other, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x).relu()
        return self.last(self.groups(F.gelu(self.one(y)) + F.gelu(self.other(y)))).mean((2, 3))


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (Mobile, 5),
        (lambda: Mobile(lambda: nn.Hardtanh(-20, 20)), 5),
        (Tokens, 3),
        (lambda: Tokens(nn.RMSNorm), 3),
        (Preactivated, 2),
    ],
)
def test_the_function_stays_and_channels_share_with_weights(
    make: Callable[[], nn.Module], count: int, pretend_data: RandomData
) -> None:
    """Equation 4 with alpha 0.5: an activation's channels are to each other as the weights that read them."""
    graph, x = folded_graph(uneven(make()), pretend_data), pretend_data.calibration()[:]
    with torch.no_grad():
        before = graph(x)
        shared_before = shared(graph, x)
        assert smooth(graph, x, 16, per_channel=True) == count == len(shared_before)
        torch.testing.assert_close(graph(x), before, rtol=0, atol=1e-5 * float(before.abs().max()))
    for ratio, old in zip(shared(graph, x), shared_before, strict=True):
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-4, atol=0)
        assert old.max() > 1.02 * old.min()


def shared(graph: GraphModule, x: Tensor) -> list[Tensor]:
    """The largest magnitude of each channel, divided by that of the weights that read it, in float64.

    A depthwise layer has a scale for each channel, so that its weights do not count. Channels of zeros are left out.
    """
    computed, found = values(graph, x), []
    for channels in smoothable(graph):
        source = channels.layers[0].args[0]
        largest = computed[source.name].double().abs().movedim(channels.axes[source], 0).flatten(1).amax(1)
        weights = torch.zeros_like(largest)
        for layer in channels.layers:
            weight = graph.get_parameter(str(layer.args[1].target).replace("_weight", ".weight")).double()
            groups = layer.args[6] if len(layer.args) > 6 else 1
            for channel in range(len(largest)):
                inputs = len(largest) // groups
                group = weight.chunk(groups)[channel // inputs]
                weights[channel] = max(weights[channel], group[:, channel % inputs].abs().max())
            if inputs == 1:
                weights.fill_(1)
        found.append((largest / weights)[largest > 0])
    return found


def test_channels_that_a_relu6_cuts_off_stay(pretend_data: RandomData) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    ).eval()  # fmt: skip
    x = pretend_data.calibration()[:]
    with torch.no_grad():
        network[0].weight.mul_(torch.tensor([9.0, 0.1, 0.01, 9.0])[:, None, None, None])
        network[0].bias.zero_()
        cut = network[:2](x).amax((0, 2, 3)) == 6
        assert cut.tolist() == [True, False, False, True] and network[:3](x).amax() < 6, "the average hides it"
        graph = folded_graph(network, pretend_data)
        smooth(graph, x, 16, per_channel=True)
        torch.testing.assert_close(graph(x), network(x), rtol=0, atol=1e-5)
    changed = (graph.get_parameter("0.weight") != network[0].weight).flatten(1).any(1)
    assert torch.equal(changed, ~cut)


class Stays(nn.Module):
    """Two norms of which nothing may be scaled: `kind` says why."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.first, self.second = kind, nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 8)
        self.norm, self.other = (nn.LayerNorm(8, elementwise_affine=kind != "no weight") for _ in range(2))
        self.last = nn.Linear(128 if kind == "mixed channels" else 8, 10)
        if kind == "shared norm":
            self.other.weight = self.norm.weight

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.first(x)).flatten(2).transpose(1, 2)
        y, z = self.norm(x), self.other(x.square())
        if self.kind == "residual":
            return self.last(F.gelu(self.second(y) + self.second(z) + y + z)).mean(1)
        if self.kind == "shared layer":
            return self.last(F.gelu(self.second(y) * self.second(z)).mean(1))
        if self.kind == "another function":
            return self.last(F.gelu(y).mean(1) + z.sigmoid().mean(1))
        if self.kind == "mixed channels":
            return self.last((F.gelu(y) + F.gelu(z)).flatten(1))
        return self.last(F.gelu(self.second(y)).mean(1)) + F.linear(z, self.second.weight[:, :]).sum(1)[:, :1]


KINDS = ("residual", "shared layer", "shared norm", "another function", "mixed channels", "no weight")


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_scaled_stays(kind: str, pretend_data: RandomData) -> None:
    graph = folded_graph(Stays(kind).eval(), pretend_data)
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    assert smoothable(graph) == []
    assert smooth(graph, pretend_data.calibration()[:], 16, per_channel=True) == 0
    assert all(torch.equal(value, before[name]) for name, value in graph.state_dict().items())
