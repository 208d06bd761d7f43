"""Checks the options of a dataset that say how images are prepared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from qexp.types import Preprocessing, UserError, nearest

RESIZE = ("stretch", "crop", "pad")
INTERPOLATION = ("bilinear", "bicubic", "lanczos", "nearest")
AUTO = "auto"


def check_whole(least: int, **options: Any) -> None:
    """Check whole numbers.

    Raises:
        UserError: An option is none of at least `least`.
    """
    for name, value in options.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(f"data.{name} is {value!r}; it must be a whole number of at least {least}.")


def size_of(image_size: int | Sequence[int] | str) -> tuple[int, int]:
    """(H, W) of `data.image_size`, which is a side, [H,W], or HxW as records write it.

    Raises:
        UserError: It is something else.
    """
    value: Any = image_size
    if isinstance(value, str) and re.fullmatch(r"\d+x\d+", value):
        value = [int(side) for side in value.split("x")]
    sides = [*value] if isinstance(value, Sequence) and not isinstance(value, str) else [value, value]
    if len(sides) != 2 or isinstance(value, str):
        raise UserError(f"data.image_size is {image_size!r}; give a side in pixels, or [HEIGHT,WIDTH].")
    check_whole(1, **{"image_size": sides[0]})
    check_whole(1, **{"image_size": sides[1]})
    return sides[0], sides[1]


def geometry(
    channels: int, image_size: int | Sequence[int] | str, resize: str, resize_to: int | None, interpolation: str,
    orient: bool, pixel_range: float, transform: str,
) -> Preprocessing:  # fmt: skip
    """The preprocessing that options of a dataset ask for, with mean 0 and deviation 1.

    Arguments are those options of conf/data/_common.yaml.

    Raises:
        UserError: An option is out of range, or two contradict each other.
    """
    if channels not in (1, 3) and not transform:
        raise UserError(f"data.channels is {channels}; images have 1 (grey) or 3 (colour) channels.")
    size = size_of(image_size)
    for name, value, known in (("resize", resize, RESIZE), ("interpolation", interpolation, INTERPOLATION)):
        if value not in known:
            raise UserError(f"data.{name} is {value!r}: {nearest(str(value), known)}")
    if resize_to is not None:
        check_whole(1, resize_to=resize_to)
        if resize != "crop":
            raise UserError(f"data.resize_to={resize_to} needs data.resize=crop; it is {resize}.")
        if resize_to < max(size):
            raise UserError(f"data.resize_to is {resize_to}; no {size[0]}x{size[1]} pixels can be cropped from that.")
    if not isinstance(orient, bool):
        raise UserError(f"data.orient is {orient!r}; it must be true or false.")
    if not isinstance(pixel_range, (int, float)) or pixel_range <= 0:
        raise UserError(f"data.pixel_range is {pixel_range!r}; it must be a number above 0, such as 1 or 255.")
    zeros, ones = (0.0,) * channels, (1.0,) * channels
    return Preprocessing(
        channels, size, zeros, ones, resize, resize_to, interpolation, orient, float(pixel_range), transform
    )


def per_channel(name: str, given: float | str | Sequence[float], channels: int) -> tuple[float, ...] | None:
    """The values of `data.mean` or `data.std`, one for each channel.

    Args:
        name: Name of the option.
        given: One value for all channels, a list with one for each, or `auto`.
        channels: Number of channels.

    Returns:
        The values, or None for `auto`.

    Raises:
        UserError: The value is something else.
    """
    if given == AUTO:
        return None
    values = [given] * channels if isinstance(given, (int, float)) else [] if isinstance(given, str) else [*given]
    if len(values) != channels or not all(isinstance(value, (int, float)) for value in values):
        raise UserError(f"data.{name} is {given!r}; give auto, a number, or a list of {channels}: data.{name}=[...].")
    if name == "std" and min(map(float, values)) <= 0:
        raise UserError(f"data.std is {given!r}; every deviation must be above 0.")
    return tuple(map(float, values))
