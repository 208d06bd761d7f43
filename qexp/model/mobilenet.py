"""MobileNetV2 (Sandler et al., 2018) for small images, without the first two halvings of the ImageNet network."""

from __future__ import annotations

from torch import Tensor, nn

# Expansion, channels, blocks and stride of the first block, from table 2 of the paper, but with stride 1 in row 2.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def convolution(
    in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(),
    ]


class InvertedResidual(nn.Module):
    """Widens the channels by `expansion`, convolves each by itself, and narrows them again to `out_channels`.

    The input is added to the result if both have the same shape.
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int):
        super().__init__()
        hidden = in_channels * expansion
        widen = convolution(in_channels, hidden) if expansion > 1 else []
        self.body = nn.Sequential(
            *widen, *convolution(hidden, hidden, 3, stride, groups=hidden), *convolution(hidden, out_channels)[:-1]
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class MobileNetV2(nn.Module):
    """MobileNetV2: x[B,C,H,W] -> logits[B,K]."""

    def __init__(self, num_classes: int, in_channels: int, dropout: float):
        super().__init__()
        layers = convolution(in_channels, 32, 3)
        channels = 32
        for expansion, width, blocks, stride in STAGES:
            for block in range(blocks):
                layers.append(InvertedResidual(channels, width, expansion, stride if block == 0 else 1))
                channels = width
        layers += convolution(channels, 1280)
        self.features = nn.Sequential(*layers)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout))
        self.classifier = nn.Linear(1280, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)))
