"""One small network, compressed and lowered once for all tests of engines: compilers take their time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from qexp.artifact import Artifact
from qexp.data.random import RandomData
from qexp.engine.base import Engine
from qexp.method.artifacts import make_artifact
from qexp.method.base import Method
from tests import configured
from tests.engine.support import BATCH


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> RandomData:
    return configured.pretend_data(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def small() -> nn.Module:
    """A residual network whose batch norms have seen images."""
    torch.manual_seed(0)
    made = configured.network("resnet8", blocks=[1, 1], widths=[16, 32]).train()
    with torch.no_grad():
        for _ in range(3):
            made(torch.randn(32, 3, 16, 16) * 2 + 0.5)
    return made.eval()


@pytest.fixture(scope="session")
def images(data: RandomData) -> np.ndarray:
    """x[B,C,H,W], not a whole number of batches."""
    return data.calibration()[:].numpy()[: 8 * BATCH - 1]


@pytest.fixture(scope="session")
def own_logits(small: nn.Module, images: np.ndarray) -> np.ndarray:
    """The network's own, in fp32."""
    with torch.no_grad():
        return small(torch.from_numpy(images)).numpy()


@pytest.fixture(scope="session")
def lowered(
    small: nn.Module, data: RandomData, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Method, Engine], Artifact]:
    """The network compressed by a method and lowered for an engine, one thread and calls of BATCH images."""
    root = tmp_path_factory.mktemp("engines") / "artifacts"

    def make(method: Method, engine: Engine) -> Artifact:
        made = make_artifact(method, small, data, engine.spec, {"model": "small", "weights": "random"}, root)
        return engine.lower(made, BATCH, 1)

    return make
