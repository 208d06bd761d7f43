"""Reads image files of all formats."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from qexp.data.pixels import to_array
from qexp.data.transforming import transformed
from qexp.types import Preprocessing, UserError

SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".avif", ".jp2",
}  # fmt: skip


def is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def prepared(image: Image.Image, how: Preprocessing) -> np.ndarray:
    """An image as an array[H,W,C]: uint8, or float32 where a function of the user makes it. Errors: theirs."""
    return transformed(image, how) if how.transform else to_array(image, how)


def read_image(file: Path, how: Preprocessing) -> np.ndarray:
    """Read an image file as an array[H,W,C]: uint8, or float32 where a function of the user makes it.

    Raises:
        UserError: The file cannot be read. The message names it.
    """
    try:
        with Image.open(file) as image:
            return prepared(image, how)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except Exception as error:  # Pillow raises all sorts of errors on damaged files
        raise UserError(
            f"Cannot read the image {file}: {error}. Replace or remove it, or leave such files out: "
            "data.skip_broken=true."
        ) from error
