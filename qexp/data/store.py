"""Keeps decoded images on disk, as many of them as were asked for, under what they were decoded from."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import IO

import numpy as np
from filelock import FileLock

from qexp.data.decoded import ABSENT, BROKEN, DecodedPart
from qexp.files import building, not_writable
from qexp.types import UserError

PARTS = ("train", "test")
SAVED_EVERY = 10  # seconds between two times at which it is written down which images are decoded


@dataclass(frozen=True)
class Listing:
    """Which images a dataset has, known without decoding them.

    Attributes:
        class_names: Names of the labels 0, 1, ...
        labels: labels[N] int64 of the images of each part: `train`, `test` and, if it has one, `calibration`.
    """

    class_names: tuple[str, ...]
    labels: dict[str, np.ndarray]


class Split:
    """The images of one part of a dataset, in memory.

    Args:
        images: images[N,H,W,C].
        labels: labels[N] int64.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self._images, self.labels = images, labels

    def prepare(self, indices: np.ndarray, decode: Callable[[np.ndarray], Iterable[np.ndarray | None]]) -> np.ndarray:
        """Decode the images with these indices, unless that was done before.

        Args:
            indices: The indices.
            decode: Decodes images[H,W,C] in the order of the indices that it is given. None stands for an image that is
                broken and to be left out.

        Returns:
            The indices without those of broken images.
        """
        return indices

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The images[N,H,W,C] with these indices, which are prepared."""
        return self._images[indices]

    def broken(self) -> np.ndarray:
        """Indices of the images that turned out to be broken."""
        return np.empty(0, int)


class StoredSplit(Split):
    """The images of one part of a dataset, on disk in the order in which they were first asked for.

    Args:
        folder: Folder of the decoded images, as qexp.data.decoded describes it.
        part: Name of the part.

    Raises:
        OSError: The folder is not there.
        ValueError: It is damaged.
    """

    def __init__(self, folder: Path, part: str):
        self.folder, self.part, self._stored = folder, part, DecodedPart(folder, part)
        self.labels = self._stored.labels

    def prepare(self, indices: np.ndarray, decode: Callable[[np.ndarray], Iterable[np.ndarray | None]]) -> np.ndarray:
        stored = self._stored
        if (stored.rows[indices] == ABSENT).any():
            with locked(self.folder, self.part):  # the jobs of a sweep start together, and one decodes for all
                stored.rows = stored.stored_rows()
                missing = indices[stored.rows[indices] == ABSENT]
                if len(missing):
                    self._add(missing, decode(missing))
        return indices[stored.rows[indices] != BROKEN]

    def _add(self, indices: np.ndarray, images: Iterable[np.ndarray | None]) -> None:
        """Append images. What was decoded before an interruption or an error is kept."""
        rows, pixels, saved = self._stored.rows, self._stored.pixels, monotonic()
        row = int(rows.max(initial=ABSENT)) + 1
        try:
            with open(pixels, "r+b" if pixels.exists() else "w+b") as file:
                file.seek(row * self._stored.image_bytes)
                try:
                    for index, image in zip(indices, images, strict=True):
                        if image is None:
                            rows[index] = BROKEN
                            continue
                        file.write(image.astype(self._stored.dtype, copy=False).tobytes())
                        rows[index], row = row, row + 1
                        if monotonic() - saved > SAVED_EVERY:
                            self._save(file)
                            saved = monotonic()
                finally:
                    self._save(file)
        except OSError as error:
            raise not_writable(pixels, error) from error

    def _save(self, pixels: IO[bytes]) -> None:
        """Write down which images are decoded, after their pixels."""
        pixels.flush()
        partial = self._stored.places.with_suffix(".partial.npy")
        np.save(partial, self._stored.rows)
        os.replace(partial, self._stored.places)

    def read(self, indices: np.ndarray) -> np.ndarray:
        return self._stored.read(indices)

    def broken(self) -> np.ndarray:
        return np.flatnonzero(self._stored.rows == BROKEN)


def open_or_make(
    folder: Path, listing: Callable[[], Listing], shape: tuple[int, ...], dtype: str
) -> tuple[tuple[str, ...], dict[str, Split]]:
    """Open a folder of decoded images. If it is missing or damaged, an empty one is made.

    Args:
        folder: Folder of the decoded images.
        listing: Tells which images there are. Its errors are passed on.
        shape: (H, W, C) of an image.
        dtype: Type of a pixel.

    Returns:
        The names of the classes, and the parts.

    Raises:
        UserError: Nothing can be written there.
    """
    found = _opened(folder)
    if found is None:
        with locked(folder, "all"):
            found = _opened(folder)
            if found is None:
                write_listing(folder, listing(), shape, dtype)
                found = _opened(folder)
    if found is None:
        raise UserError(
            f"{folder} was written but cannot be read again. "
            "Is the disk in order? Or choose another folder with outputs=."
        )
    return found


def _opened(folder: Path) -> tuple[tuple[str, ...], dict[str, Split]] | None:
    try:
        about = json.loads((folder / "about.json").read_text())
        return tuple(about["class_names"]), {part: StoredSplit(folder, part) for part in about["parts"]}
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None


def write_listing(folder: Path, listing: Listing, shape: tuple[int, ...], dtype: str) -> None:
    """Make a folder in which no image is decoded yet."""
    with building(folder) as partial:
        for part, labels in listing.labels.items():
            np.save(partial / f"{part}_labels.npy", labels.astype(np.int64))
        about = {"class_names": listing.class_names, "parts": [*listing.labels], "shape": shape, "dtype": dtype}
        (partial / "about.json").write_text(json.dumps(about))
        if folder.exists():  # damaged, or it would have been read
            shutil.rmtree(folder)


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold the lock of a part of a folder, which need not exist yet."""
    file = folder.with_name(f"{folder.name}-{what}.lock")
    lock = FileLock(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise not_writable(folder, error) from error
    try:
        yield
    finally:
        lock.release()
