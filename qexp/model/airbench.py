"""The network of airbench94 (Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024), for small images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qexp.types import UserError


def whitening(images: Tensor, kernel: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """Filters that map patches to values that are uncorrelated, of mean 0 and of variance 1 over all patches.

    The filters are the eigenvectors of the patches' covariance, each divided by the root of its eigenvalue.

    Args:
        images: images[N,C,H,W].
        kernel: Side k of the patches in pixels.
        epsilon: What is added to the eigenvalues, so that noise is not amplified without limit.

    Returns:
        filters[C*k*k,C,k,k] and bias[C*k*k], float64.
    """
    channels = images.shape[1]
    size = channels * kernel**2
    patches = nn.functional.unfold(images.double(), kernel).transpose(0, 1).reshape(size, -1)
    variances, directions = torch.linalg.eigh(torch.cov(patches))
    filters = directions.T / (variances + epsilon).sqrt()[:, None]
    return filters.view(size, channels, kernel, kernel), -filters @ patches.mean(1)


class Whitening(nn.Conv2d):
    """A convolution without padding that whitens patches. Each filter is there with both signs, for an activation.

    Its weights come from the first images that are trained on, and stay as they are. Its bias is trained.

    Args:
        in_channels: Channels C of the images.
        kernel: Side k of the patches in pixels; there are 2*C*k*k filters.
        epsilon: What is added to the variances of the patches.
    """

    def __init__(self, in_channels: int, kernel: int, epsilon: float):
        super().__init__(in_channels, 2 * in_channels * kernel**2, kernel)
        self.weight.requires_grad_(False)
        self.epsilon = epsilon

    @torch.no_grad()
    def start_from_images(self, images: Tensor) -> None:
        """Take the weights from normalised training images x[N,C,H,W]."""
        filters, bias = whitening(images, self.kernel_size[0], self.epsilon)
        self.weight.copy_(torch.cat([filters, -filters]))
        assert self.bias is not None
        self.bias.copy_(torch.cat([bias, -bias]))


class AirbenchBlock(nn.Module):
    """Two 3x3 convolutions, of which the first is pooled; each is followed by a batch norm and GELU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.first, self.second = (_convolution(channels, out_channels) for channels in (in_channels, out_channels))
        self.first_norm, self.second_norm = _norm(out_channels), _norm(out_channels)
        self.pool = nn.MaxPool2d(2)
        self.first_activation, self.second_activation = nn.GELU(), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        # A batch norm scales by something positive, so it may as well come before the pooling. There it can be folded
        # into the convolution; behind it, training has a quarter of the values to normalise.
        x = self.first_norm(self.pool(x)) if self.training else self.pool(self.first_norm(x))
        return self.second_activation(self.second_norm(self.second(self.first_activation(x))))


def _convolution(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A convolution that at first passes its input on in as many of its channels as possible (Dirac filters)."""
    made = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.dirac_(made.weight.data[:in_channels])
    return made


def _norm(channels: int) -> nn.BatchNorm2d:
    """A batch norm that shifts but does not scale, and soon forgets old statistics."""
    norm = nn.BatchNorm2d(channels, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm


class Airbench(nn.Module):
    """A fixed whitening of patches, three blocks that halve the image, and a linear layer: x[B,C,S,S] -> logits[B,K].

    Raises:
        UserError: The images are too small for it.
    """

    def __init__(
        self, widths: Sequence[int], kernel: int, epsilon: float, num_classes: int, in_channels: int, image_size: int
    ):
        super().__init__()
        least = 2 ** len(widths) + kernel - 1  # of which one pixel is left behind the blocks
        if image_size < least:
            raise UserError(
                f"airbench needs images of at least {least}x{least} pixels, got data.image_size={image_size}."
            )
        self.whitening = Whitening(in_channels, kernel, epsilon)
        self.activation = nn.GELU()
        channels = [self.whitening.out_channels, *widths]
        self.blocks = nn.Sequential(*(AirbenchBlock(*pair) for pair in zip(channels, widths, strict=False)))
        self.pool = nn.Sequential(nn.MaxPool2d((image_size - kernel + 1) // 2 ** len(widths)), nn.Flatten())
        self.classifier = nn.Linear(channels[-1], num_classes, bias=False)
        self.classifier.weight.data /= 9  # the paper divides the logits by 9, which would be one more operator

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.blocks(self.activation(self.whitening(x)))))
