"""The user's own images, in the files ROOT/{train,test}/CLASS/*.{png,jpg,jpeg,webp,bmp,...}."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qexp.data.base import ImageData
from qexp.data.reading import SUFFIXES, is_image, read_image
from qexp.data.store import Listing, progress
from qexp.types import UserError, digest

PARTS = {"train": ("train",), "test": ("test", "val", "valid", "validation")}  # names of their folders, best first
LAYOUT = "Expected ROOT/train/CLASS/IMAGE and ROOT/test/CLASS/IMAGE (or val, valid, validation)"
AT_ONCE = 64  # images that are decoded side by side, and kept until they are written


class FolderData(ImageData):
    """Images in one folder for each class, which has the name of the class.

    Folders may be nested below that of their class. Links are followed. Hidden files are ignored, and so are files
    that are no images, of which `notes` tells.

    The names and sizes of all files say which images these are, and so a copy of the folder is the same data; reading
    a million files to make sure would take an hour. Their times are looked at as well: where one has changed, images
    are decoded anew, and what was made from them is made anew.

    Args:
        root: The folder.
        name: Name of the data, or None for that of the folder.
        calibration: Folder of unlabelled images to calibrate with, or None for training images. With it, the folder
            needs no training part.
        skip_broken: Whether files that cannot be read are left out and counted.
        **common: What all data take.

    Raises:
        UserError: No root is given.
    """

    def __init__(self, root: str | None, name: str | None, calibration: str | None, skip_broken: bool, **common: Any):
        if not root:
            raise UserError("data.root is empty. Give data.root=FOLDER or set the environment variable QEXP_DATA.")
        self.root = Path(root).expanduser()
        self.calibration_folder = Path(calibration).expanduser() if calibration else None
        self.skip_broken = skip_broken
        self.skipped: Counter[str] = Counter()  # files that are no images, by suffix
        super().__init__(name=name or self.root.resolve().name, **common)

    def _folder(self, part: str) -> Path:
        found = [self.root / name for name in PARTS[part] if (self.root / name).is_dir()]
        if not found:
            raise UserError(
                f"There is no folder {self.root / PARTS[part][0]}. {LAYOUT}; set data.root to ROOT.{self._hint()}"
            )
        return found[0]

    def _hint(self) -> str:
        """Suggest datasets inside the root, since QEXP_DATA may hold several."""
        inside = sorted(str(p) for p in self.root.iterdir() if (p / "train").is_dir()) if self.root.is_dir() else []
        return f" Did you mean data.root={' or data.root='.join(inside[:5])}?" if inside else ""

    def _classes(self, part: str) -> list[Path]:
        folder = self._folder(part)
        entries = _entries(folder)
        stray = [entry.name for entry in entries if not entry.is_dir() and is_image(entry.name)]
        if stray:
            raise UserError(f"{folder} holds images that belong to no class: {_first(stray)}. {LAYOUT}.")
        return [folder / entry.name for entry in entries if entry.is_dir()]

    def _class_names(self) -> tuple[str, ...]:
        parts = ["test"] if self.calibration_folder and not (self.root / "train").is_dir() else ["train", "test"]
        names = {part: [p.name for p in self._classes(part)] for part in parts}
        if not names[parts[0]]:
            raise UserError(f"{self._folder(parts[0])} holds no class folders. {LAYOUT}.")
        if len(parts) == 2 and names["train"] != names["test"]:
            only = [_first(sorted({*names[one]} - {*names[other]})) for one, other in (parts, parts[::-1])]
            raise UserError(
                f"The classes below {self.root} differ: only in train: {only[0]}; only in test: {only[1]}. "
                "Both parts need the same class folders."
            )
        return tuple(names["test"])

    @cached_property
    def files(self) -> dict[str, list[tuple[Path, os.stat_result, int]]]:
        """The image files of each part with their sizes, times and labels, sorted by class and name."""
        found: dict[str, list[tuple[Path, os.stat_result, int]]] = {"train": []}
        self._class_names()
        for part in PARTS:
            if part == "train" and self.calibration_folder and not (self.root / "train").is_dir():
                continue
            found[part] = []
            for label, folder in enumerate(self._classes(part)):
                images = [(file, state, label) for file, state in self._images(folder)]
                if not images:
                    raise UserError(
                        f"{folder} holds no images (looked for {', '.join(sorted(SUFFIXES))}). Fill it or remove it."
                    )
                found[part] += images
        if self.calibration_folder:
            found["calibration"] = [(file, state, 0) for file, state in self._images(self.calibration_folder)]
            if not found["calibration"]:
                raise UserError(f"data.calibration={self.calibration_folder} holds no images.")
        return found

    def _images(self, folder: Path, above: tuple[Path, ...] = ()) -> Iterator[tuple[Path, os.stat_result]]:
        """All images below a folder, sorted by name."""
        real = folder.resolve()
        if real in above:
            raise UserError(f"{folder} is a link to a folder above itself, so that there is no end. Remove it.")
        for entry in _entries(folder):
            if entry.is_dir():
                yield from self._images(folder / entry.name, (*above, real))
            elif is_image(entry.name):
                yield folder / entry.name, _state(entry)
            else:
                self.skipped[os.path.splitext(entry.name)[1] or entry.name] += 1

    def _named(self) -> list[tuple[str, str, os.stat_result]]:
        """Part, name and state of all files."""
        found = []
        for part, files in self.files.items():
            root = self._root(part) if files else self.root
            found += [(part, file.relative_to(root).as_posix(), state) for file, state, _ in files]
        return found

    def _root(self, part: str) -> Path:
        return self.calibration_folder if part == "calibration" and self.calibration_folder else self._folder(part)

    def source_digest(self) -> str:
        return digest([(part, name, state.st_size) for part, name, state in self._named()])

    def source_version(self) -> str:
        return digest([(state.st_mtime_ns, state.st_ctime_ns) for _, _, state in self._named()])

    def listing(self) -> Listing:
        labels = {part: np.array([label for _, _, label in files], np.int64) for part, files in self.files.items()}
        return Listing(self._class_names(), labels)

    def decode(self, part: str, indices: np.ndarray) -> Iterable[np.ndarray | None]:
        files = [self.files[part][index][0] for index in indices]
        return progress(self._side_by_side(files), f"Decoding {self.name} {part}", len(files))

    def _side_by_side(self, files: list[Path]) -> Iterator[np.ndarray | None]:
        with ThreadPoolExecutor() as pool:  # Pillow releases the interpreter lock while it decodes
            for start in range(0, len(files), AT_ONCE):
                yield from pool.map(self._read, files[start : start + AT_ONCE])

    def _read(self, file: Path) -> np.ndarray | None:
        try:
            return read_image(file, self.how)
        except UserError:
            if not self.skip_broken:
                raise
            return None

    def notes(self) -> dict[str, str]:
        broken = [str(self.files[part][index][0]) for part, split in self.splits.items() for index in split.broken()]
        found = {"broken images": f"{len(broken)} left out: {_first(broken)}"} if broken else {}
        if self.skipped:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in self.skipped.most_common(5))
            found["other files"] = f"{self.skipped.total()} that are no images were ignored: {kinds}"
        return found


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """All that is not hidden in a folder, sorted by name."""
    try:
        with os.scandir(folder) as scan:
            return sorted((entry for entry in scan if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"Cannot read the folder {folder}: {error.strerror}.") from error


def _state(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        return entry.stat()
    except OSError as error:
        raise UserError(
            f"Cannot read {entry.path}: {error.strerror}. Replace or remove it, or allow reading."
        ) from error


def _first(names: list[str]) -> str:
    """The first names of many, for a message."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "none"
