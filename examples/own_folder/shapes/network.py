"""A model: any nn.Module from x[B,C,H,W] to logits[B,K]."""

from __future__ import annotations

from torch import Tensor, nn


def stage(channels: int, width: int) -> nn.Sequential:
    """A convolution that halves the image: x[B,channels,H,W] -> [B,width,H/2,W/2]."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    )


class ShapesNet(nn.Module):
    """Three convolutions and a linear layer.

    Args:
        num_classes: Length of the logits.
        in_channels: 1 for grey images, 3 for colour.
        width: Channels of the first convolution. Each of the others has twice as many.
    """

    def __init__(self, num_classes: int, in_channels: int, width: int):
        super().__init__()
        self.features = nn.Sequential(stage(in_channels, width), stage(width, 2 * width), stage(2 * width, 4 * width))
        self.classifier = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))
