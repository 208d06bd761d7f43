"""Turns images of any size and mode into uint8 arrays of one shape, and those into what networks take.

qexp.deploy copies this file to devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # measuring children need no Pillow, nor do devices that are given arrays
    from PIL import Image


def to_array(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """Convert an image to grey or colour, and then resize it (bilinear, without keeping the aspect ratio).

    Transparency is dropped, and 16-bit grey becomes 8-bit.

    Args:
        image: The image.
        size: Height and width of the result, in pixels.
        channels: 1 for grey, 3 for colour.

    Returns:
        An array[size,size,channels] uint8.

    Raises:
        ValueError: The range of the pixel values is unknown. A damaged file raises what Pillow raises for it.
    """
    from PIL import Image

    image = _eight_bits(image)
    if "transparency" in image.info:  # Pillow wants this detour for palettes, and warns without it
        image = image.convert("RGBA")
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(size, size, channels)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Reduce an image to 8 bits per channel. Pillow would clip: everything above 255 of 65535 would turn white."""
    from PIL import Image

    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if sixteen:
        return Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its pixels are 32-bit numbers (mode {image.mode}) of unknown range; save it with 8 or 16 bits"
        )
    return image


def to_arrays(images: np.ndarray, size: int, channels: int) -> np.ndarray:
    """images[N,H,W,1 or 3] uint8 -> [N,size,size,channels] uint8, each converted by `to_array`."""
    if images.shape[1:] == (size, size, channels):
        return images
    from PIL import Image

    grey = images.shape[-1] == 1
    return np.stack([to_array(Image.fromarray(image[..., 0] if grey else image), size, channels) for image in images])


def normalise(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """images[N,H,W,C] uint8 -> x[N,C,H,W] float32, (value / 255 - mean) / std per channel."""
    scale = (1 / (255 * np.array(std))).astype(np.float32)
    shift = (-np.array(mean) / np.array(std)).astype(np.float32)
    return np.ascontiguousarray((images.astype(np.float32) * scale + shift).transpose(0, 3, 1, 2))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities [N,K] float64 of logits[N,K]."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)
