"""Reads files that list images with their classes, such as the .csv files of competitions and labelling tools."""

from __future__ import annotations

import csv
import os
import posixpath
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qexp.data.splitting import split_train
from qexp.data.walking import first
from qexp.types import UserError

PARTS = {"train": ("train",), "test": ("test", "val", "valid", "validation")}  # what they are called, best first
WORDS = tuple(word for words in PARTS.values() for word in words)
COLUMNS = {  # names of the columns in the header, best first
    "file": ("file", "filename", "file_name", "path", "image", "image_id", "id"),
    "class": ("class", "label", "target", "species", "breed", "category"),
    "part": ("part", "split"),
}
TEST_SHARE, TEST_SEED = 0.2, 0  # fixed, so that no option moves an image between training and test


@dataclass(frozen=True)
class Row:
    """A line of the file.

    Attributes:
        where: The file and the number of the line, for messages.
        name: What it says of the image's place.
        kind: Its class.
        part: Its part, one of WORDS, or empty if there is no such column.
    """

    where: str
    name: str
    kind: str
    part: str


@dataclass(frozen=True)
class Listed:
    """What a file of labels lists.

    Attributes:
        class_names: All classes: in the order of their numbers if they are numbers, and of their names otherwise.
        files: Names of the images of each part, relative to the root, with their labels, sorted by class and name.
        notes: What records say of it.
    """

    class_names: tuple[str, ...]
    files: dict[str, list[tuple[str, int]]]
    notes: dict[str, str] = field(default_factory=dict)


def read_labels(file: Path, root: Path, images: Iterable[str], may_lack_train: bool) -> Listed:
    """Find the images that a file lists among those below a root.

    A part column decides which images are for the test. Without one, those below a folder train/ are trained on and
    those below test/, val/, valid/ or validation/ are for the test. Where neither names a test image, a fixed fifth of
    each class is set aside for it. Where several words for the test occur, only the first of these counts.

    Args:
        file: The file, whose first line names its columns.
        root: The folder that the images lie in.
        images: Names of the images that there are, relative to the root.
        may_lack_train: Whether there may be test images only.

    Raises:
        UserError: The file cannot be read, lacks columns, or contradicts itself or the images.
    """
    rows, places = _rows(file), _Places(root, images)
    found: dict[str, Row] = {}
    for row in rows:
        name = places.find(row)
        if name in found:
            raise UserError(f"{row.where}: the image {name} was listed before, in {found[name].where}.")
        found[name] = row
    if not found:
        raise UserError(f"{file} lists no images.")
    words = {name: row.part or _part_of_folder(name) for name, row in found.items()}
    class_names = _in_order({row.kind for row in found.values()})
    labels = {kind: label for label, kind in enumerate(class_names)}
    sorted_names = sorted(found, key=lambda name: (labels[found[name].kind], name))
    files, notes = _in_parts(file, [(name, labels[found[name].kind]) for name in sorted_names], words)
    if not may_lack_train:
        _check_train(file, files, class_names)
    if unlisted := places.count - len(found):
        notes["images without labels"] = f"{unlisted} that {file.name} does not list were ignored"
    return Listed(class_names, files, notes)


def _rows(file: Path) -> list[Row]:
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            header = stream.readline()
            stream.seek(0)
            lines = csv.reader(stream, _dialect(header), strict=True)
            columns = _columns(file, next(lines, []))
            try:
                return [_row(f"{file}, line {lines.line_num}", cells, columns) for cells in lines if any(cells)]
            except csv.Error as error:  # such as a quotation mark that has no end
                raise UserError(f"{file}, line {lines.line_num}: {error}.") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"Cannot read data.labels={file}: {error}. Give a .csv file in UTF-8.") from error


def _dialect(header: str) -> type[csv.Dialect]:
    try:
        return csv.Sniffer().sniff(header, ",;\t|")
    except csv.Error:  # one column, which `_columns` tells
        return csv.excel


def _columns(file: Path, header: list[str]) -> dict[str, int]:
    """The place of each column. That of parts may be missing."""
    named = {name.strip().lower(): place for place, name in reversed([*enumerate(header)])}
    found = {role: named[name] for role, names in COLUMNS.items() for name in reversed(names) if name in named}
    for role in ("file", "class"):
        if role not in found:
            raise UserError(
                f"{file}, line 1: no column is named {' or '.join(COLUMNS[role])}; the columns are "
                f"{', '.join(header) or 'missing'}. Name them in the first line, such as file,class,part."
            )
    return found


def _row(where: str, cells: list[str], columns: dict[str, int]) -> Row:
    width = max(columns.values()) + 1
    if len(cells) < width:
        raise UserError(f"{where}: it has {len(cells)} columns, and the first line names at least {width}.")
    values = {role: cells[place].strip() for role, place in columns.items()}
    for role in ("file", "class"):
        if not values[role]:
            raise UserError(f"{where}: the {role} is empty.")
    part = values.get("part", "").lower()
    if "part" in columns and part not in WORDS:
        raise UserError(f"{where}: the part is {part!r}; it must be one of {', '.join(WORDS)}.")
    return Row(where, values["file"], values["class"], part)


class _Places:
    """The images below a root, by what a file may call them.

    Args:
        root: The root.
        images: Names of the images, relative to the root.
    """

    def __init__(self, root: Path, images: Iterable[str]):
        self.root, self.names = root.absolute().as_posix(), {*images}
        self.count = len(self.names)
        self.without_suffix: dict[str, list[str]] = {}
        for name in sorted(self.names):
            self.without_suffix.setdefault(os.path.splitext(name)[0], []).append(name)

    def find(self, row: Row) -> str:
        """The image that a row means: its path from the folder of its part or from the root, or its whole path.

        The suffix may be missing.

        Raises:
            UserError: There is none, or several fit.
        """
        name = posixpath.normpath(row.name.replace("\\", "/")).removeprefix(f"{self.root}/")
        beside = [word for words in PARTS.values() if not row.part or row.part in words for word in words]
        places = [name, *(f"{folder}/{name}" for folder in beside)]
        found = [place for place in places if place in self.names]
        found = found or [each for place in places for each in self.without_suffix.get(place, [])]
        if not found:
            inside = sorted(each for each in self.names if each.endswith(f"/{name}"))
            hint = f" Did you mean {inside[0]}? Then data.root is the folder that the names begin in." if inside else ""
            raise UserError(f"{row.where}: there is no image {row.name} below data.root.{hint}")
        if len(found) > 1:
            raise UserError(f"{row.where}: several images are called {row.name}: {first(found)}. Name one of them.")
        return found[0]


def _part_of_folder(name: str) -> str:
    top = name.partition("/")[0]
    return top if top in WORDS else ""


def _in_order(kinds: set[str]) -> tuple[str, ...]:
    numbers = all(kind.isascii() and kind.isdigit() for kind in kinds)
    return tuple(sorted(kinds, key=lambda kind: (int(kind) if numbers else 0, kind)))


def _in_parts(
    file: Path, images: list[tuple[str, int]], words: dict[str, str]
) -> tuple[dict[str, list[tuple[str, int]]], dict[str, str]]:
    """Divide images into the training and the test part.

    Args:
        file: The file of labels.
        images: Names and labels of all.
        words: What says their parts, one of WORDS or empty, by name.

    Returns:
        The images of each part, and notes.
    """
    counts = Counter(words.values())
    test = next((word for word in PARTS["test"] if counts[word]), None)
    if test is None:
        labels = np.array([label for _, label in images])
        train, chosen = (indices.tolist() for indices in split_train(labels, TEST_SHARE, TEST_SEED))
        note = {"test part": f"a fixed fifth of each class in {file.name}, which names no test images"}
        return {"train": [images[index] for index in train], "test": [images[index] for index in chosen]}, note
    if outside := [name for name, _ in images if not words[name]]:
        raise UserError(
            f"{file} lists images below {test}/ and others that are neither there nor below train/: {first(outside)}. "
            "Say in a column `part` which images are for train and which for test."
        )
    chosen_words = {"train": "train", "test": test}
    files = {part: [each for each in images if words[each[0]] == word] for part, word in chosen_words.items()}
    left_out = {word: count for word, count in counts.items() if word not in ("train", test)}
    notes = {f"{word} part": f"{count} images, which {test} takes the place of" for word, count in left_out.items()}
    return files, notes


def _check_train(file: Path, files: dict[str, list[tuple[str, int]]], class_names: tuple[str, ...]) -> None:
    """Check that there are training images of each class that there are test images of."""
    if not files["train"]:
        raise UserError(f"{file} lists no training images. List some, or give data.calibration=FOLDER.")
    trained = {label for _, label in files["train"]}
    if only := sorted({label for _, label in files["test"]} - trained):
        raise UserError(
            f"{file} lists no training images of {first([class_names[label] for label in only])}, but test images."
        )
