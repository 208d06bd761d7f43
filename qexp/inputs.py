"""Images in every form that people give them, as the pixels that networks take."""

from __future__ import annotations

import os
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeVar, Union

import numpy as np

from qexp.data.pixels import to_array
from qexp.types import AS_GIVEN, Preprocessing, UserError

if TYPE_CHECKING:
    from PIL import Image

OneImage = Union[np.ndarray, str, bytes, "os.PathLike[str]", "Image.Image"]
Given = TypeVar("Given", bound=OneImage)  # lets a type checker take a list of paths for a list of images


def is_many(images: Any) -> bool:
    return isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4


def pixels_of(image: OneImage, how: Preprocessing) -> np.ndarray:
    """Turn an image in any form that `Classifier.predict` takes into an array [H,W,C] of uint8, prepared as `how` says.

    It is float32 where a function of the user prepares it, and where a dataset gave such tensors.
    """
    from PIL import Image

    if how.transform == AS_GIVEN and not isinstance(image, str | bytes | os.PathLike):
        return _prepared(image, how)
    if isinstance(image, np.ndarray):
        array = _eight_bits(image)
        if array.shape == (*how.size, how.channels) and not how.resize_to and not how.transform:
            return array
        return _prepared(Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array), how)
    if isinstance(image, Image.Image):
        return _prepared(image, how)
    if not isinstance(image, str | bytes | os.PathLike):
        raise UserError(
            "An image is a path, bytes, a PIL image or a NumPy array, "
            f"not a {type(image).__module__}.{type(image).__name__}."
        )
    try:
        with Image.open(BytesIO(image) if isinstance(image, bytes) else image) as opened:
            return _prepared(opened, how)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        what = f"{len(image)} bytes" if isinstance(image, bytes) else str(image)
        raise UserError(f"Cannot read the image {what}: {error}. Replace or remove it.") from error


def _prepared(image: Any, how: Preprocessing) -> np.ndarray:
    if not how.transform:
        return to_array(image, how)
    from qexp.data.transforming import transformed  # imports torch

    return transformed(image, how)


def _eight_bits(array: np.ndarray) -> np.ndarray:
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (2,), (3,), (4,)) or not array.size:
        raise UserError(
            "An image is [H,W] or [H,W,C] with 1 to 4 channels, several are [N,H,W,C]; "
            f"this array is {list(array.shape)}."
        )
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(
            f"Pixels are uint8 in 0..255 or floats in 0..1, not {array.dtype}; convert them with astype(np.uint8)."
        )
    if not (array.min() >= 0 and array.max() <= 1):
        raise UserError(
            f"Floats must lie in 0..1; these lie in {array.min():g}..{array.max():g}. "
            "Divide by 255, and do not normalise."
        )
    return np.rint(255 * array).astype(np.uint8)
