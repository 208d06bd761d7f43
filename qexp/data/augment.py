"""Augments a whole batch in one gather, on whatever device the batch is."""

from __future__ import annotations

import torch
from torch import Tensor


def crop_and_flip(images: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Take random crops of images that are padded by reflection, and mirror some of them.

    Padding and mirroring are index arithmetic, so the images are read once and nothing is padded in memory.

    Args:
        images: images[B,H,W,C].
        padding: Pixels on each side, fewer than height and width.
        flip: Whether each image is mirrored with probability 1/2.
        generator: Source of random numbers, on the device of the images.

    Returns:
        The crops, in the shape of the images.
    """
    batch, height, width, _ = images.shape
    device = images.device
    rows = _offsets(batch, height, padding, generator, device)
    columns = _offsets(batch, width, padding, generator, device)
    if flip:
        mirrored = torch.rand(batch, 1, generator=generator, device=device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    flat = (rows[:, :, None] * width + columns[:, None, :]).view(batch, -1)
    flat = flat + torch.arange(batch, device=device)[:, None] * (height * width)
    return images.reshape(batch * height * width, -1).index_select(0, flat.view(-1)).view(images.shape)


def _offsets(batch: int, size: int, padding: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Source indices[B,size] along one axis for a random shift of each image by -padding..padding, with reflection."""
    shift = torch.randint(-padding, padding + 1, (batch, 1), generator=generator, device=device)
    index = (torch.arange(size, device=device)[None] + shift).abs()
    return (size - 1) - ((size - 1) - index).abs()


def cutout(images: Tensor, side: int, fill: Tensor, generator: torch.Generator) -> Tensor:
    """Cover one square at a random place in each image.

    DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017: the centre of the
    square is uniform over the image, so part of the square may be outside.

    Args:
        images: images[B,H,W,C] uint8.
        side: Side of the square in pixels.
        fill: fill[C] uint8, which the square is set to.
        generator: Source of random numbers, on the device of the images.

    Returns:
        The images with their squares.
    """
    batch, height, width, _ = images.shape
    rows, columns = (
        (
            torch.arange(size, device=images.device)[None]
            - torch.randint(size, (batch, 1), generator=generator, device=images.device)
        )
        for size in (height, width)
    )
    low, high = -(side // 2), (side + 1) // 2
    hidden = ((rows >= low) & (rows < high))[:, :, None] & ((columns >= low) & (columns < high))[:, None, :]
    return torch.where(hidden[..., None], fill, images)
