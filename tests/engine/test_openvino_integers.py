"""Networks that OpenVINO would compute wrongly in integers, or not at all, if their graphs were not rewritten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qexp.data.random import RandomData
from qexp.method.artifacts import make_artifact
from qexp.model.base import bake
from tests import configured
from tests.engine.support import BATCH, engine_named, error, graph_logits, run
from tests.patterns.composed import Applied
from tests.tiers import more

pytestmark = pytest.mark.integration


class Counting(nn.Module):
    """Repeats a parameter for each image, so that the number of images is read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head, self.token = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 10), nn.Parameter(torch.randn(1, 16))
        nn.init.normal_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.conv(x)).mean((2, 3)) * self.token.expand(x.shape[0], -1))


def largest() -> nn.Module:
    """Adds the largest logits of all patches to those of their mean, as VOLO does."""
    conv, each, mean = nn.Conv2d(3, 32, 4, 4), nn.Linear(32, 10), nn.Linear(32, 10)

    def function(x: Tensor, conv: nn.Module, each: nn.Module, mean: nn.Module) -> Tensor:
        tokens = F.gelu(conv(x)).flatten(2).transpose(1, 2)
        return mean(tokens.mean(1)) + 0.5 * each(tokens).max(1)[0]

    return Applied(function, conv, each, mean)


def pooled() -> nn.Module:
    """Averages over images with zeros around them."""
    conv, pool, last = nn.Conv2d(3, 8, 3, 2, 1), nn.AvgPool2d(3, 2, 1), nn.Conv2d(8, 10, 4)
    return Applied(lambda x, conv, pool, last: last(pool(conv(x))).flatten(1), conv, pool, last)


def rolled() -> nn.Module:
    """Rolls images, pads them by nothing, and cuts them into windows, as Swin Transformers do."""
    conv, head = nn.Conv2d(3, 8, 2, 2), nn.Linear(32, 10)

    def function(x: Tensor, conv: nn.Module, head: nn.Module) -> Tensor:
        x = F.pad(conv(x).permute(0, 2, 3, 1).roll((-1, -1), (1, 2)), (0, 0, 0, 0, 0, 0))
        windows = x.view(-1, 4, 2, 4, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, 32)
        return head(windows).mean(1)

    return Applied(function, conv, head)


def padded() -> nn.Module:
    """Pads values with ones, which sum up the weights of linear attention, as EfficientViT does."""
    conv, head = nn.Conv2d(3, 48, 4, 4), nn.Linear(16, 10)

    def function(x: Tensor, conv: nn.Module, head: nn.Module) -> Tensor:
        q, k, v = conv(x).reshape(-1, 2, 24, 16).transpose(-1, -2).chunk(3, -1)
        summed = F.relu(q) @ (F.relu(k).transpose(-1, -2) @ F.pad(v, (0, 1), value=1.0))
        mixed = summed[..., :-1] / (summed[..., -1:] + 1e-5)
        return head(mixed.transpose(-1, -2).reshape(-1, 16, 16).mean(2))

    return Applied(function, conv, head)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "counting": Counting, "largest": largest, "pooled": pooled, "rolled": rolled, "padded": padded,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RandomData:
    return configured.pretend_data(tmp_path_factory.mktemp("images"))


@pytest.mark.parametrize("name", ["counting", "pooled", "padded", *more("largest", "rolled")])
def test_openvino_computes_what_the_graph_says(name: str, data: RandomData, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, engine = bake(NETWORKS[name]().eval()), engine_named("openvino")
    source = {"model": name, "weights": "random"}
    made = engine.lower(
        make_artifact(configured.method("static"), network, data, engine.spec, source, tmp_path), BATCH, 1
    )
    x = data.calibration()[:8].numpy()
    assert error(run(engine, made, x), graph_logits(made, x)) < 4 / 127
