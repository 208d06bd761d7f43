"""LeNet-5 (LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998) with ReLU."""

from __future__ import annotations

from torch import Tensor, nn

from qexp.types import UserError


class LeNet5(nn.Module):
    """LeNet-5: x[B,C,S,S] -> logits[B,K].

    It has 5x5 convolutions of 6, 16 and 120 channels with average pooling between them, and linear layers of 84 and K
    outputs.

    Raises:
        UserError: The images are smaller than 32x32 pixels.
    """

    def __init__(self, num_classes: int, in_channels: int, image_size: int):
        super().__init__()
        side = ((image_size - 4) // 2 - 4) // 2 - 4
        if side < 1:
            raise UserError(f"lenet5 needs images of at least 32x32 pixels, got data.image_size={image_size}.")
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, 5), nn.ReLU(), nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.AvgPool2d(2),
            nn.Conv2d(16, 120, 5), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Linear(120 * side * side, 84), nn.ReLU(), nn.Linear(84, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))
