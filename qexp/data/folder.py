"""The user's own images, in the files root/{train,test}/CLASS/*.{png,jpg,jpeg,webp,bmp,...}."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qexp.data.base import ImageData
from qexp.data.cache import PARTS, Decoded, Split, content_digest, progress
from qexp.data.pixels import to_array
from qexp.types import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}
LAYOUT = "Expected ROOT/train/CLASS/IMAGE and ROOT/test/CLASS/IMAGE"


class FolderData(ImageData):
    """Images in one folder for each class, which has the name of the class.

    Links are followed. Hidden files and files that are no images are ignored.

    Raises:
        UserError: No root is given.
    """

    def __init__(self, root: str | None, name: str | None, **common: Any):
        if not root:
            raise UserError("data.root is empty. Give data.root=FOLDER or set the environment variable QEXP_DATA.")
        self.root = Path(root).expanduser()
        super().__init__(name=name or self.root.resolve().name, **common)

    def _classes(self, part: str) -> list[Path]:
        folder = self.root / part
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}. {LAYOUT}; set data.root to ROOT.{self._hint()}")
        entries = _entries(folder)
        stray = [name for name, is_folder in entries if not is_folder and _is_image(name)]
        if stray:
            raise UserError(f"{folder} holds images that belong to no class: {_first(stray)}. {LAYOUT}.")
        return [folder / name for name, is_folder in entries if is_folder]

    def _hint(self) -> str:
        """Suggest datasets inside the root, since QEXP_DATA may hold several."""
        inside = sorted(str(p) for p in self.root.iterdir() if (p / "train").is_dir()) if self.root.is_dir() else []
        return f" Did you mean data.root={' or data.root='.join(inside[:5])}?" if inside else ""

    def _class_names(self) -> tuple[str, ...]:
        train, test = ([p.name for p in self._classes(part)] for part in PARTS)
        if not train:
            raise UserError(f"{self.root / 'train'} holds no class folders. {LAYOUT}.")
        if train != test:
            only_train, only_test = sorted(set(train) - set(test)), sorted(set(test) - set(train))
            raise UserError(
                f"The classes below {self.root} differ: only in train: {_first(only_train)}; "
                f"only in test: {_first(only_test)}. "
                "Both parts need the same class folders."
            )
        return tuple(train)

    def _files(self, part: str) -> list[tuple[Path, int]]:
        """The image files of a part with their labels, sorted by class and name."""
        found: list[tuple[Path, int]] = []
        for label, folder in enumerate(self._classes(part)):
            entries = _entries(folder)
            nested = [name for name, is_folder in entries if is_folder]
            if nested:
                raise UserError(
                    f"{folder} holds folders ({_first(nested)}), but images must lie directly in it. {LAYOUT}."
                )
            files = [(folder / name, label) for name, _ in entries if _is_image(name)]
            if not files:
                raise UserError(
                    f"{folder} holds no images (looked for {', '.join(sorted(SUFFIXES))}). Fill it or remove it."
                )
            found += files
        return found

    def source_digest(self) -> str:
        self._class_names()
        files = [file for part in PARTS for file, _ in self._files(part)]
        return content_digest(files, self.root, self.cache_dir / "digests")

    def decode(self) -> Decoded:
        return Decoded(self._class_names(), {part: self._decode(part) for part in PARTS})

    def _decode(self, part: str) -> Split:
        files = self._files(part)
        images = np.empty((len(files), self.image_size, self.image_size, self.channels), np.uint8)
        with ThreadPoolExecutor() as pool:  # Pillow releases the interpreter lock while it decodes
            decoded = pool.map(self._read, (file for file, _ in files))
            for row, image in enumerate(progress(decoded, f"Decoding {self.name} {part}", len(files))):
                images[row] = image
        return Split(images, np.array([label for _, label in files]))

    def _read(self, file: Path) -> np.ndarray:
        try:
            with Image.open(file) as image:
                return to_array(image, self.image_size, self.channels)
        except Exception as error:
            raise UserError(f"Cannot read the image {file}: {error}. Replace or remove it.") from error


def _entries(folder: Path) -> list[tuple[str, bool]]:
    """Names of all that is not hidden in a folder, sorted, and whether each is a folder, told without opening it."""
    try:
        with os.scandir(folder) as scan:
            return sorted((entry.name, entry.is_dir()) for entry in scan if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"Cannot read the folder {folder}: {error.strerror}.") from error


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _first(names: list[str]) -> str:
    """The first names of many, for a message."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "none"
