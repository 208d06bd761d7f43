"""VGG with batch norm (Simonyan and Zisserman, 2015) for small images."""

from __future__ import annotations

from torch import Tensor, nn

from qexp.types import UserError, nearest

# Convolutions in each of the five stages by depth, from table 1 of the paper (configurations A, B, D and E).
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """VGG: x[B,C,S,S] -> logits[B,K], with five poolings, then linear layers of 4096, 4096 and K outputs.

    Raises:
        UserError: There is no VGG of that depth, or the images are smaller than 32x32 pixels.
    """

    def __init__(self, depth: int, num_classes: int, in_channels: int, image_size: int, dropout: float):
        super().__init__()
        if depth not in STAGES:
            raise UserError(f"There is no VGG of depth {depth}. {nearest(str(depth), map(str, STAGES))}")
        if image_size < 32:
            raise UserError(
                f"VGG halves the image five times and needs at least 32x32 pixels, got data.image_size={image_size}."
            )
        layers: list[nn.Module] = []
        for width, convolutions in zip(WIDTHS, STAGES[depth], strict=True):
            for _ in range(convolutions):
                layers += [nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                in_channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(512 * (image_size // 32) ** 2, 4096), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(4096, num_classes),
        )  # fmt: skip
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))
