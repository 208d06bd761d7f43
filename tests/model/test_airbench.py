"""The whitening network against NumPy, and what its batch norms and its start amount to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qexp.model.airbench import Whitening, whitening
from qexp.model.base import start_from
from qexp.types import UserError
from tests import configured


def correlated(channels: int = 3, images: int = 40, size: int = 12) -> torch.Tensor:
    """Images whose neighbouring pixels and channels are alike, with a mean that is not 0."""
    noise = torch.randn(images, channels, size, size, generator=torch.Generator().manual_seed(0))
    mixed = noise + 0.7 * noise.roll(1, 1) + 0.9 * noise.roll(1, 3)
    return mixed + torch.arange(channels)[:, None, None] - 0.3


def patches_of(images: torch.Tensor, kernel: int) -> np.ndarray:
    """patches[N,C*k*k], one after the other."""
    values = images.double().numpy()
    last = values.shape[-1] - kernel + 1
    windows = [
        image[:, top : top + kernel, left : left + kernel].ravel()
        for image in values for top in range(last) for left in range(last)
    ]  # fmt: skip
    return np.array(windows)


@pytest.mark.parametrize(("channels", "kernel"), [(3, 2), (1, 2), (2, 3)])
def test_whitened_patches_have_mean_0_and_identity_covariance(channels: int, kernel: int) -> None:
    images = correlated(channels)
    filters, bias = whitening(images, kernel, 0.0)
    patches = patches_of(images, kernel)
    made = patches @ filters.reshape(len(filters), -1).numpy().T + bias.numpy()
    np.testing.assert_allclose(made.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(np.cov(made.T), np.eye(len(filters)), atol=1e-9)


@pytest.mark.parametrize("epsilon", [0.0, 0.05])
def test_filters_are_numpys_eigenvectors(epsilon: float) -> None:
    images = correlated()
    variances, directions = np.linalg.eigh(np.cov(patches_of(images, 2).T))
    expected = directions.T / np.sqrt(variances + epsilon)[:, None]
    found = whitening(images, 2, epsilon)[0].reshape(12, 12).numpy()
    signs = np.sign((found * expected).sum(1))  # an eigenvector may as well point the other way
    np.testing.assert_allclose(found, signs[:, None] * expected, rtol=1e-6, atol=1e-9)


def test_the_layer_computes_what_whitens_with_both_signs() -> None:
    layer, images = Whitening(3, 2, 0.01), correlated()
    start_from(nn.Sequential(layer, nn.ReLU()), lambda: images)
    filters, bias = whitening(images, 2, 0.01)
    expected = patches_of(images[:1], 2) @ filters.reshape(12, 12).numpy().T + bias.numpy()
    found = layer(images[:1]).detach()[0].flatten(1).T.numpy()
    np.testing.assert_allclose(found, np.concatenate([expected, -expected], 1), atol=2e-5)
    assert not layer.weight.requires_grad and layer.bias is not None and layer.bias.requires_grad


def network(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = configured.network("airbench", **{"widths": [32, 40, 48], **options})
    return made


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28), (3, 9)])
def test_shapes_and_parameters(channels: int, size: int) -> None:
    made = network(in_channels=channels, image_size=size)
    assert made(torch.randn(5, channels, size, size)).shape == (5, 10)
    first = 8 * channels
    expected = 4 * channels * first + first + 9 * (first * 32 + 32 * 32 + 32 * 40 + 40 * 40 + 40 * 48 + 48 * 48)
    assert sum(p.numel() for p in made.parameters()) == expected + 4 * (32 + 40 + 48) + 48 * 10


def test_blocks_begin_by_passing_their_input_on() -> None:
    for block in network().blocks:  # type: ignore[union-attr]
        for convolution in (block.first, block.second):
            x = torch.randn(2, convolution.in_channels, 6, 6)
            torch.testing.assert_close(convolution(x)[:, : x.shape[1]], x)


def test_norms_before_and_behind_the_pooling_are_the_same() -> None:
    block = network().blocks[0]  # type: ignore[index]
    for _ in range(3):
        block(torch.randn(8, 24, 10, 10))
    with torch.no_grad():
        block.first_norm.bias.normal_()
        x = torch.randn(4, 24, 10, 10)
        block.eval()
        inference = block(x)
        behind = block.second_activation(
            block.second_norm(block.second(block.first_activation(block.first_norm(block.pool(block.first(x))))))
        )
    assert torch.equal(inference, behind)


def test_norms_shift_and_do_not_scale() -> None:
    norms = [m for m in network().modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 6 and all(not n.weight.requires_grad and n.bias.requires_grad for n in norms)


def test_small_images_are_an_error() -> None:
    with pytest.raises(UserError, match="airbench needs images of at least 9x9 pixels, got data.image_size=8"):
        network(image_size=8)
