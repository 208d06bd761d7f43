"""Turns images of any size and mode into uint8 arrays of one shape, and those into what networks take.

qexp.deploy copies this file to devices, where a `Preprocessing` is any object with the same attributes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # measuring children need no Pillow, nor do devices that are given arrays
    from PIL import Image

    from qexp.types import Preprocessing


def to_array(image: Image.Image, how: Preprocessing) -> np.ndarray:
    """Convert an image to grey or colour, and give it the size that a network takes.

    Transparency is dropped, and 16-bit grey becomes 8-bit. Where torchvision's Resize and CenterCrop do the same, the
    pixels are the same.

    Args:
        image: The image. Of an animation, the first frame counts.
        how: Says how.

    Returns:
        An array[H,W,C] uint8.

    Raises:
        ValueError: The range of the pixel values is unknown. A damaged file raises what Pillow raises for it.
    """
    if how.orient:
        from PIL import ImageOps

        image = ImageOps.exif_transpose(image)
    image = _eight_bits(image)
    if "transparency" in image.info:  # Pillow wants this detour for palettes, and warns without it
        image = image.convert("RGBA")
    image = image.convert("L" if how.channels == 1 else "RGB")
    return np.asarray(_shaped(image, how)).reshape(*how.size, how.channels)


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


def _shaped(image: Image.Image, how: Preprocessing) -> Image.Image:
    """Resize an image, and crop or pad it, to the size of the network."""
    from PIL import Image

    height, width = how.size
    resized = {"stretch": (width, height), "crop": _covering(image.size, how), "pad": _inside(image.size, how)}
    if image.size != resized[how.resize]:
        image = image.resize(resized[how.resize], Image.Resampling[how.interpolation.upper()])
    left, top = (round((image.width - width) / 2), round((image.height - height) / 2))  # as torchvision rounds
    return image if image.size == (width, height) else image.crop((left, top, left + width, top + height))


def _covering(size: tuple[int, int], how: Preprocessing) -> tuple[int, int]:
    """(W, H) of an image of which `how.size` is cropped. The longer side is rounded down, as torchvision does it."""
    (height, width), short = how.size, min(size)
    # The smallest short side with which both sides are long enough.
    least = max(-(-height * short // size[1]), -(-width * short // size[0]))
    target = how.resize_to or least
    return (
        (target, int(target * size[1] / size[0])) if size[0] <= size[1] else (int(target * size[0] / size[1]), target)
    )


def _inside(size: tuple[int, int], how: Preprocessing) -> tuple[int, int]:
    """(W, H) of the largest image of the same aspect ratio that fits into `how.size`."""
    height, width = how.size
    ratio = min(width / size[0], height / size[1])
    return max(1, min(width, round(size[0] * ratio))), max(1, min(height, round(size[1] * ratio)))


def to_arrays(images: np.ndarray, how: Preprocessing) -> np.ndarray:
    """images[N,H,W,1 or 3] uint8 -> [N,*how.size,how.channels] uint8, each converted by `to_array`."""
    if images.shape[1:] == (*how.size, how.channels) and how.resize_to is None:
        return images
    from PIL import Image

    grey = images.shape[-1] == 1
    return np.stack([to_array(Image.fromarray(image[..., 0] if grey else image), how) for image in images])


def normalise(images: np.ndarray, how: Preprocessing) -> np.ndarray:
    """images[N,H,W,C] uint8 -> x[N,C,H,W] float32, (value / 255 * pixel_range - mean) / std per channel.

    Images in float32, which a function of the user made, are only transposed.
    """
    if images.dtype != np.uint8:
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    scale, shift = factors(how)
    return np.ascontiguousarray((images.astype(np.float32) * scale + shift).transpose(0, 3, 1, 2))


def factors(how: Preprocessing) -> tuple[np.ndarray, np.ndarray]:
    """scale[C] and shift[C] float32 of the normalisation, which is value * scale + shift."""
    std = np.array(how.std)
    return (how.pixel_range / (255 * std)).astype(np.float32), (-np.array(how.mean) / std).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities [N,K] float64 of logits[N,K]."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)
