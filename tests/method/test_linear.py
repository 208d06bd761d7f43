"""What an artifact costs grows with the number of layers and no faster. Calls are counted, since clocks say little."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from qexp.method.batch_norms import fold_batch_norms
from qexp.method.graph import graph_of, trace
from qexp.method.layers import layer_name, layer_nodes, weight_named
from tests import configured

LAYERS = 5
Step = Callable[[GraphModule, nn.Module], Any]


def calls(step: Callable[[], Any]) -> int:
    """How many functions are called in a step, those written in C among them."""
    count = 0

    def see(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        step()
    finally:
        sys.setprofile(before)
    return count


def deep(layers: int) -> nn.Module:
    """A network of as many convolutions, each with a batch norm of its own."""
    blocks = [nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()) for _ in range(layers)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(3 * 8 * 8, 10)).eval()


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[nn.Module, ExportedProgram]]:
    """Networks with LAYERS convolutions, twice and four times as many, and their programs."""
    data = configured.data(
        "random", images=4, num_classes=10, name="random", image_size=8, channels=3,
        cache_dir=str(tmp_path_factory.mktemp("cache")), calibration_images=2,
    )  # fmt: skip
    data.open()
    return [(network, trace(network, data)) for network in map(deep, (LAYERS, 2 * LAYERS, 4 * LAYERS))]


@pytest.mark.integration
@pytest.mark.parametrize(
    "step",
    [
        lambda graph, network: fold_batch_norms(graph),
        lambda graph, network: [weight_named(network, name) for name in map(layer_name, layer_nodes(graph))],
    ],
    ids=["batch norms", "weights"],
)
def test_calls_grow_with_the_layers(step: Step, programs: list[tuple[nn.Module, ExportedProgram]]) -> None:
    one, two, four = counted = [calls(partial(step, graph_of(program), network)) for network, program in programs]
    assert four - two < 1.1 * 2 * (two - one), f"{counted} calls"
