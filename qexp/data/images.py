"""Images as networks take them, some or all of them at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from qexp.data.splitting import spread

if TYPE_CHECKING:
    from qexp.data.base import ImageData


LARGE = 64 * 64  # pixels of an image
FEWEST = 16  # images in a step, unless fewer are asked for


class Images(Protocol):
    """Normalised images x[N,C,H,W] float32, such as a tensor, or those that are read when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, chosen: Any, /) -> Tensor: ...

    def split(self, batch: int, /) -> Iterable[Tensor]: ...


def in_steps(images: Images, most: int) -> Iterable[Tensor]:
    """All images, some at a time: x[B,C,H,W] of at most `most` images.

    Of images with more than 64x64 pixels, fewer are given, but at least FEWEST. At 224x224 pixels, networks take 1.6 to
    2 times as long per image in steps of 64 as in steps of 16, since no cache holds the activations.
    """
    fitting = most * LARGE // images[:1].shape[-2:].numel()
    return images.split(min(most, max(FEWEST, fitting)))


class CalibrationImages:
    """Calibration images as networks take them, read from the disk when they are asked for.

    They are contiguous, as engines get them, since a network may have views that take no other memory order.

    Args:
        data: The data that they belong to.
        part: The part of it that they belong to.
        indices: Their indices in this part.
    """

    def __init__(self, data: ImageData, part: str, indices: np.ndarray):
        self._data, self._part, self.indices = data, part, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, chosen: slice | Tensor) -> Tensor:
        """x[N,C,H,W] float32 of a slice of the images, or of those with these indices."""
        indices = self.indices[chosen if isinstance(chosen, slice) else chosen.numpy()]
        images = self._data.normalise(torch.from_numpy(self._data.pixels(self._part, indices)))
        return images.clone(memory_format=torch.contiguous_format)

    def split(self, batch: int) -> Iterator[Tensor]:
        """x[B,C,H,W] float32 of all images, at most `batch` at a time."""
        return (self[start : start + batch] for start in range(0, len(self), batch))


def training_images(data: ImageData, count: int) -> CalibrationImages:
    """At most `count` training images of opened data, spread over the classes, without augmentation."""
    chosen = spread(data.train_indices, data.splits["train"].labels[data.train_indices], count)
    return CalibrationImages(data, "train", data.prepare("train", chosen))


def validation_images(data: ImageData, count: int | None = None) -> tuple[CalibrationImages, np.ndarray]:
    """The validation images of opened data with their labels[N].

    Args:
        data: The data.
        count: How many images, spread over the classes, or None for all. They are those on which accuracy is measured.
    """
    labels, chosen = data.splits["train"].labels, data.validation_indices
    if count is not None:
        chosen = spread(chosen, labels[chosen], count)
    chosen = data.prepare("train", chosen)
    return CalibrationImages(data, "train", chosen), labels[chosen]
