"""Pretend images of any shape and number of classes, to try and time networks without data."""

from __future__ import annotations

from typing import Any

import numpy as np

from qexp.data.base import ImageData
from qexp.data.cache import PARTS, Decoded, Split
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

    def decode(self) -> Decoded:
        assert self.num_classes is not None
        shape = (self.images, self.image_size, self.image_size, self.channels)
        labels = np.arange(self.images) % self.num_classes
        splits = {
            part: Split(np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8), labels)
            for seed, part in enumerate(PARTS)
        }
        return Decoded(tuple(str(label) for label in range(self.num_classes)), splits)
