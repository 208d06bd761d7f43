"""LiteRT and ncnn compute what graphs say, operator by operator and network by network, from files that qexp writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qexp.artifact import Artifact
from qexp.data.random import RandomData
from qexp.engine.base import Engine
from qexp.method.artifacts import make_artifact
from qexp.method.base import Method
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
