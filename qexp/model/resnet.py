"""Residual networks for small images, with a 3x3 stem without pooling (He et al., "Deep Residual Learning", 2016)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Computes relu(body(x) + shortcut(x)).

    The shortcut is a 1x1 convolution if the shape changes (option B of the paper), and the identity otherwise.
    """

    def __init__(self, in_channels: int, width: int, stride: int, bottleneck: bool):
        super().__init__()
        out_channels = 4 * width if bottleneck else width
        # input channels, output channels, kernel and stride of each convolution of the body
        shapes = (
            [(in_channels, width, 1, 1), (width, width, 3, stride), (width, out_channels, 1, 1)]
            if bottleneck
            else [(in_channels, width, 3, stride), (width, width, 3, 1)]
        )
        layers: list[nn.Module] = []
        for shape in shapes:
            layers += [*convolution(*shape), nn.ReLU()]
        self.body = nn.Sequential(*layers[:-1])
        unchanged = stride == 1 and in_channels == out_channels
        self.shortcut = (
            nn.Identity() if unchanged else nn.Sequential(*convolution(in_channels, out_channels, 1, stride))
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


def convolution(in_channels: int, out_channels: int, kernel: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    ]


class ResNet(nn.Module):
    """A residual network: x[B,C,H,W] -> logits[B,K].

    Stage i has blocks[i] blocks of widths[i] channels. All stages but the first halve the image.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        num_classes: int,
        in_channels: int,
        bottleneck: bool,
    ):
        super().__init__()
        self.stem = nn.Sequential(*convolution(in_channels, widths[0], 3, 1), nn.ReLU())
        stages: list[nn.Module] = []
        channels = widths[0]
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(ResidualBlock(channels, width, stride, bottleneck))
                channels = 4 * width if bottleneck else width
        self.blocks = nn.Sequential(*stages)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.blocks(self.stem(x))))
