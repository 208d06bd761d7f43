"""The user's own images, in the files ROOT/{train,test}/CLASS/*.{png,jpg,jpeg,webp,bmp,...} or listed in a file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qexp.data.classes import MappedData
from qexp.data.generated import GENERATED
from qexp.data.labels import PARTS, Listed, read_labels
from qexp.data.reading import SUFFIXES, is_image, read_image
from qexp.data.walking import ImageFile, entries, first, images_below
from qexp.progress import progress
from qexp.types import UserError, digest

LAYOUT = (
    "Expected ROOT/train/CLASS/IMAGE and ROOT/test/CLASS/IMAGE (or val, valid, validation), or data.labels=FILE.csv, "
    "which lists images with their classes"
)
AT_ONCE = 64  # images that are decoded side by side, and kept until they are written


class FolderData(MappedData):
    """Images in one folder for each class, which has the name of the class, or in any folders and listed in a file.

    Folders may be nested below that of their class. Links are followed. Hidden files are ignored, and so are files
    that are no images, of which `notes` tells.

    The names, sizes and classes of all files say which images these are, and so a copy of the folder is the same data;
    reading a million files to make sure would take an hour. The times at which they were changed are looked at as well:
    where one differs, images are decoded anew, and what was made from them is made anew. A copy that keeps these times,
    as those of tar and rsync do, keeps everything. Only a change that leaves both size and time goes unnoticed.

    Args:
        root: The folder.
        name: Name of the data, or None for that of the folder.
        labels: File that lists the images, as qexp.data.labels reads it, or None for class folders.
        calibration: Folder of unlabelled images to calibrate with, `generated`, or None for training images. In the
            first two cases, the folder needs no training part.
        skip_broken: Whether files that cannot be read are left out and counted.
        **common: What all data take.

    Raises:
        UserError: No root is given.
    """

    def __init__(
        self, root: str | None, name: str | None, labels: str | None, calibration: str | None, skip_broken: bool,
        **common: Any,
    ):  # fmt: skip
        if not root:
            raise UserError("data.root is empty. Give data.root=FOLDER or set the environment variable QEXP_DATA.")
        if not isinstance(skip_broken, bool):
            raise UserError(f"data.skip_broken is {skip_broken!r}; it must be true or false.")
        self.root = Path(root).expanduser()
        self.labels_file = _labels_file(labels, self.root) if labels else None
        generated = calibration == GENERATED
        self.calibration_folder = Path(calibration).expanduser() if calibration and not generated else None
        self._may_lack_train = calibration is not None
        self.skip_broken = skip_broken
        self.skipped: Counter[str] = Counter()  # files that are no images, by suffix
        self.labels: dict[str, list[int]] = {}  # of the images of each part, once `files` is known
        super().__init__(name=name or self.root.resolve().name, calibration=GENERATED if generated else None, **common)

    def _folder(self, part: str) -> Path:
        found = [self.root / name for name in PARTS[part] if (self.root / name).is_dir()]
        if not found:
            instead = (
                " To calibrate with images that have no classes, give data.calibration=FOLDER; without any, "
                "data.calibration=generated."
            ) * (part == "train")
            raise UserError(
                f"There is no folder {self.root / PARTS[part][0]}. {LAYOUT}; set data.root to ROOT."
                f"{self._hint()}{instead}"
            )
        return found[0]

    def _hint(self) -> str:
        """Suggest datasets inside the root, since QEXP_DATA may hold several."""
        inside = sorted(str(p) for p in self.root.iterdir() if (p / "train").is_dir()) if self.root.is_dir() else []
        return f" Did you mean data.root={' or data.root='.join(inside[:5])}?" if inside else ""

    def _lacks_train(self) -> bool:
        return self._may_lack_train and not (self.root / "train").is_dir()

    def _classes(self, part: str) -> list[Path]:
        folder = self._folder(part)
        inside = entries(folder)
        stray = [entry.name for entry in inside if not entry.is_dir() and is_image(entry.name)]
        if stray:
            raise UserError(f"{folder} holds images that belong to no class: {first(stray)}. {LAYOUT}.")
        return [folder / entry.name for entry in inside if entry.is_dir()]

    def _class_names(self) -> tuple[str, ...]:
        parts = ["test"] if self._lacks_train() else ["train", "test"]
        names = {part: [p.name for p in self._classes(part)] for part in parts}
        if not names[parts[0]]:
            raise UserError(f"{self._folder(parts[0])} holds no class folders. {LAYOUT}.")
        if len(parts) == 2 and names["train"] != names["test"]:
            only = [first(sorted({*names[one]} - {*names[other]})) for one, other in (parts, parts[::-1])]
            raise UserError(
                f"The classes below {self.root} differ: only in train: {only[0]}; only in test: {only[1]}. "
                "Both parts need the same class folders."
            )
        return tuple(names["test"])

    @cached_property
    def files(self) -> dict[str, list[ImageFile]]:
        """The image files of each part, sorted by class and name."""
        found = self._listed_files() if self.labels_file else self._files_in_class_folders()
        if folder := self.calibration_folder:
            found["calibration"] = [*images_below(folder, self.skipped)]
            self.labels["calibration"] = [0] * len(found["calibration"])
            if not found["calibration"]:
                raise UserError(f"data.calibration={folder} holds no images.")
        return found

    def _files_in_class_folders(self) -> dict[str, list[ImageFile]]:
        self._class_names()
        self.labels = {"train": []}
        found: dict[str, list[ImageFile]] = {"train": []}
        for part in PARTS:
            if part == "train" and self._lacks_train():
                continue
            found[part], self.labels[part] = [], []
            for label, folder in enumerate(self._classes(part)):
                images = [*images_below(folder, self.skipped)]
                if not images:
                    raise UserError(
                        f"{folder} holds no images (looked for {', '.join(sorted(SUFFIXES))}). Fill it or remove it."
                    )
                found[part] += images
                self.labels[part] += [label] * len(images)
        return found

    def _listed_files(self) -> dict[str, list[ImageFile]]:
        listed = self._listed.files
        self.labels = {part: [label for _, label in images] for part, images in listed.items()}
        return {part: [self._below_root[name] for name, _ in images] for part, images in listed.items()}

    @cached_property
    def _below_root(self) -> dict[str, ImageFile]:
        """All images below the root, by their names relative to it."""
        return {_relative(image, self.root): image for image in images_below(self.root, self.skipped)}

    @cached_property
    def _listed(self) -> Listed:
        """What the file of labels lists."""
        assert self.labels_file
        return read_labels(self.labels_file, self.root, self._below_root, self._may_lack_train)

    def _place(self, part: str) -> Path:
        if part == "calibration" and self.calibration_folder:
            return self.calibration_folder
        return self.root if self.labels_file else self._folder(part)

    def found_digest(self) -> str:
        named = [
            (part, _relative(image, place), image.size)
            for part, images in self.files.items() if images
            for place in [self._place(part)]
            for image in images
        ]  # fmt: skip
        if not self.labels_file:
            return digest(named)  # names say the classes
        labels = [label for part in self.files for label in self.labels[part]]
        return digest([named, self.found_classes(), labels])

    def source_version(self) -> str:
        return digest([image.changed for images in self.files.values() for image in images])

    def found_classes(self) -> tuple[str, ...]:
        return self._listed.class_names if self.labels_file else self._class_names()

    def found_labels(self) -> dict[str, np.ndarray]:
        return {part: np.array(self.labels[part], np.int64) for part in self.files}

    def decode(self, part: str, indices: np.ndarray) -> Iterable[np.ndarray | None]:
        files = [Path(self.files[part][index].path) for index in indices]
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
        broken = [self.files[part][index].path for part, split in self.splits.items() for index in split.broken()]
        found = super().notes() | (self._listed.notes if self.labels_file else {})
        if broken:
            found["broken images"] = f"{len(broken)} left out: {first(broken)}"
        if self.skipped:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in self.skipped.most_common(5))
            found["other files"] = f"{self.skipped.total()} that are no images were ignored: {kinds}"
        return found


def _relative(image: ImageFile, place: Path) -> str:
    """Name of an image relative to a folder that it is in, with slashes on every system."""
    return image.path[len(os.path.join(place, "")) :].replace(os.sep, "/")  # ten times as fast as pathlib


def _labels_file(labels: str, root: Path) -> Path:
    """The file of labels, which may be named from here or from the root."""
    file = Path(labels).expanduser()
    return root / file if not file.exists() and (root / file).exists() else file
