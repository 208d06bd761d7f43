"""Finds the image files below a folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from qexp.data.reading import is_image
from qexp.types import UserError


class ImageFile(NamedTuple):
    """An image file. There may be a million of them, so that it is small.

    Attributes:
        path: Its path.
        size: Its size in bytes.
        changed: When its content was changed last, in nanoseconds.
    """

    path: str
    size: int
    changed: int


def images_below(folder: Path, skipped: Counter[str], above: tuple[Path, ...] = ()) -> Iterator[ImageFile]:
    """All images below a folder, sorted by name. Hidden files are ignored.

    Args:
        folder: The folder.
        skipped: Counts the files that are no images, by suffix.
        above: The folders that it is in, without links.

    Raises:
        UserError: Something cannot be read, or a link leads to a folder above itself.
    """
    real = folder.resolve()
    if real in above:
        raise UserError(f"{folder} is a link to a folder above itself, so that there is no end. Remove it.")
    for entry in entries(folder):
        if entry.is_dir():
            yield from images_below(folder / entry.name, skipped, (*above, real))
        elif is_image(entry.name):
            yield _image_file(entry)
        else:
            skipped[os.path.splitext(entry.name)[1] or entry.name] += 1


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """All that is not hidden in a folder, sorted by name.

    Raises:
        UserError: The folder cannot be read.
    """
    try:
        with os.scandir(folder) as scan:
            return sorted((entry for entry in scan if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"Cannot read the folder {folder}: {error.strerror}.") from error


def _image_file(entry: os.DirEntry[str]) -> ImageFile:
    try:
        state = entry.stat()
        return ImageFile(entry.path, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise UserError(
            f"Cannot read {entry.path}: {error.strerror}. Replace or remove it, or allow reading."
        ) from error


def first(names: list[str]) -> str:
    """The first names of many, for a message."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "none"
