"""A network that a program holds and that the command line can import."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Small(nn.Module):
    """x[B,1,16,16] -> logits[B,2], the same weights for the same seed."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.features = nn.Sequential(nn.Conv2d(1, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3))
        self.classifier = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).relu().mean((2, 3)))
