"""A dataset: grey images of a circle, a square or a triangle, drawn anywhere and in any size on a noisy ground."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from qexp.data.base import ImageData
from qexp.data.pixels import to_arrays
from qexp.data.store import Listing
from qexp.types import digest

CLASSES = ("circle", "square", "triangle")
PARTS = ("train", "test")


def draw(part: str, index: int) -> np.ndarray:
    """The image[32,32,1] uint8 with this number, which shows the class `index % 3`."""
    random = np.random.default_rng([PARTS.index(part), index])
    image = Image.fromarray(random.integers(0, 90, (32, 32), np.uint8))
    half = random.uniform(5, 12)
    x, y = random.uniform(half, 32 - half, 2)
    box = (x - half, y - half, x + half, y + half)
    pen, colour = ImageDraw.Draw(image), int(random.integers(70, 255))
    if CLASSES[index % 3] == "circle":
        pen.ellipse(box, fill=colour)
    elif CLASSES[index % 3] == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.polygon([(x, y - half), (x + half, y + half), (x - half, y + half)], fill=colour)
    return np.asarray(image)[..., None]


class Shapes(ImageData):
    """Drawn shapes. What every dataset shares, such as the split and augmentation, comes from ImageData.

    Args:
        train_images: Number of images to train and validate on.
        test_images: Number of images to test on.
        **common: The options in conf/data/_common.yaml of qexp.
    """

    trains_in_seconds = True  # so that a missing baseline is trained at once
    whole = True  # all images are drawn together

    def __init__(self, train_images: int, test_images: int, **common: Any):
        super().__init__(**common)
        self.count = dict(zip(PARTS, (train_images, test_images), strict=True))

    def source_digest(self) -> str:
        return digest(self.count)  # the images depend on nothing else, except for this file, which always counts

    def listing(self) -> Listing:
        return Listing(CLASSES, {part: np.arange(count) % len(CLASSES) for part, count in self.count.items()})

    def decode(self, part: str, indices: np.ndarray) -> Iterable[np.ndarray]:
        return to_arrays(np.stack([draw(part, int(index)) for index in indices]), self.how)
