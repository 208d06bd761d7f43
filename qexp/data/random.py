"""Pretend images of any shape and number of classes, to try and time networks without data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from qexp.data.base import ImageData
from qexp.data.store import PARTS, Listing
from qexp.types import UserError, digest


class RandomData(ImageData):
    """Uniform random images, always the same. The labels take turns, so that no class is favoured.

    Raises:
        UserError: There are fewer than two classes or two images.
    """

    pretend = True

    def __init__(self, images: int, num_classes: int | None, **common: Any):
        if num_classes is None or num_classes < 2:
            raise UserError(f"data.num_classes is {num_classes}; pretend images need a number of classes, at least 2.")
        if images < 2:
            raise UserError(f"data.images is {images}; it must be at least 2, one to train and one to validate on.")
        self.images = images
        super().__init__(num_classes=num_classes, **common)

    def source_digest(self) -> str:
        return digest(["random", self.images, self.num_classes])

    def listing(self) -> Listing:
        assert self.num_classes is not None
        labels = np.arange(self.images) % self.num_classes
        return Listing(tuple(str(label) for label in range(self.num_classes)), dict.fromkeys(PARTS, labels))

    def decode(self, part: str, indices: np.ndarray) -> Iterable[np.ndarray]:
        shape = (self.images, *self.how.size, self.channels)
        return np.random.default_rng(PARTS.index(part)).integers(256, size=shape, dtype=np.uint8)[indices]
