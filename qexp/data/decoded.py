"""Reads the folders of decoded images that qexp.data.store makes. Measuring children use it, so it needs only NumPy.

A folder holds `about.json` with the names of the classes and parts and with the shape and type of an image. For each
part it holds `PART_labels.npy`, `PART_pixels.bin` with the pixels of one image after the other, and `PART_rows.npy`,
which says where among them each image is. So a folder of a million images of which a thousand are decoded takes space
for these alone.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

ABSENT, BROKEN = -1, -2  # in the place of the row of an image that is not decoded, and of one that cannot be


class DecodedPart:
    """The decoded images of one part of a dataset.

    Args:
        folder: Folder of the decoded images.
        part: Name of the part.

    Raises:
        OSError: The folder is not there.
        ValueError: It is damaged.
    """

    def __init__(self, folder: Path, part: str):
        about = json.loads((folder / "about.json").read_text())
        self.shape, self.dtype = tuple(about["shape"]), np.dtype(about["dtype"])
        self.image_bytes = int(np.prod(self.shape)) * self.dtype.itemsize
        self.labels = np.load(folder / f"{part}_labels.npy")
        self.pixels, self.places = folder / f"{part}_pixels.bin", folder / f"{part}_rows.npy"
        self.rows = self.stored_rows()

    def stored_rows(self) -> np.ndarray:
        """rows[N]: place of each image among the pixels. A row that a damaged file has lost counts as absent."""
        try:
            rows = np.load(self.places)
            stored = self.pixels.stat().st_size // self.image_bytes
        except (OSError, ValueError, EOFError):
            return np.full(len(self.labels), ABSENT)
        if rows.shape != self.labels.shape:
            return np.full(len(self.labels), ABSENT)
        return np.where(rows < stored, rows, ABSENT)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The images[N,H,W,C] with these indices, which are decoded.

        The file is mapped anew each time, so that what was read does not count as memory of this process.

        Raises:
            ValueError: They are not decoded.
        """
        rows = self.rows[indices]
        if not len(rows):
            return np.empty((0, *self.shape), self.dtype)
        if rows.min() < 0:
            raise ValueError(f"{self.pixels} lacks {int((rows < 0).sum())} of the images that are asked for")
        return np.memmap(self.pixels, self.dtype, "r", shape=(int(rows.max()) + 1, *self.shape))[rows]


def write_part(folder: Path, part: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Write the only part of a folder, in which all images[N,H,W,C] with their labels[N] are decoded."""
    about = {"class_names": [], "parts": [part], "shape": images.shape[1:], "dtype": str(images.dtype)}
    (folder / "about.json").write_text(json.dumps(about))
    (folder / f"{part}_pixels.bin").write_bytes(images.tobytes())
    np.save(folder / f"{part}_labels.npy", labels)
    np.save(folder / f"{part}_rows.npy", np.arange(len(labels)))


def evenly(available: int, count: int | None) -> np.ndarray:
    """indices[N] of `count` of the available images, spread evenly, or of all if there are fewer or it is None."""
    if count is None:
        return np.arange(available)
    return np.unique(np.linspace(0, available - 1, count).round().astype(int))
