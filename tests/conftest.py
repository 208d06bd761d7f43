from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from qexp.data.random import RandomData
from qexp.model.resnet import ResNet


@pytest.fixture
def pretend_data(tmp_path: Path) -> RandomData:
    """64 pretend images of 3x16x16 in 10 classes, opened."""
    data = RandomData(images=64, num_classes=10, name="random", image_size=16, channels=3, cache_dir=str(tmp_path), calibration_images=32)
    data.open()
    return data


@pytest.fixture
def network() -> nn.Module:
    """A small residual network with batch norms that do something, in eval mode."""
    torch.manual_seed(0)
    made = ResNet([1, 1], [8, 16], num_classes=10)
    with torch.no_grad():
        made.train()
        for _ in range(3):
            made(torch.randn(16, 3, 16, 16) * 2 + 0.5)
    return made.eval()
