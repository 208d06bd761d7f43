"""Classes of a dataset among the logits of a network, which may have more of them, or another order."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qexp.data.base import ImageData
from qexp.data.store import Listing
from qexp.data.walking import first
from qexp.types import UserError, digest, nearest

AMONG = ("all", "own")
IMAGENET = Path(__file__).with_name("imagenet_classes.txt")  # WordNet id and name of each class, in the logits' order
FORMATS = (
    "Its lines are `CLASS INDEX`, `CLASS,INDEX` or `CLASS,INDEX,NAME`, or one class each in the order of the logits; "
    "a .json holds {class: index} or a list of classes."
)


@dataclass(frozen=True)
class LogitTable:
    """Which logit of a network each class is.

    Attributes:
        index: Index of the logit by the name that the dataset gives the class.
        names: Names of the logits that have one, by index.
        outputs: Number of logits.
    """

    index: dict[str, int]
    names: dict[int, str]
    outputs: int


class MappedData(ImageData):
    """Images whose classes may be found among the logits of a network.

    A source of images defines `found_digest`, `found_classes` and `found_labels` in place of `source_digest` and
    `listing`. Without `classes`, the classes that it finds are the logits.

    Args:
        classes: `imagenet`, a file that says which logit each class is, or None.
        among: `all` if the network answers with all its logits, `own` if only with those of the dataset's classes.
        **common: What all data take.

    Raises:
        UserError: `among` is unknown or has no `classes`, or the file is missing or damaged.
    """

    def __init__(self, classes: str | None, among: str, **common: Any):
        if among not in AMONG:
            raise UserError(f"data.among is {among!r}: {nearest(str(among), AMONG)}")
        if among == "own" and not classes:
            raise UserError(
                "data.among=own needs data.classes, which says which logits of the network the classes are."
            )
        super().__init__(**common)
        self.classes, self.among = classes, among
        self.table = read_table(classes, self.num_classes) if classes else None

    # Every source defines the next three methods.

    def found_digest(self) -> str:
        """Digest of what the images are decoded from, as `source_digest` says."""
        raise NotImplementedError

    def found_classes(self) -> tuple[str, ...]:
        """Names of the classes that the images have."""
        raise NotImplementedError

    def found_labels(self) -> dict[str, np.ndarray]:
        """labels[N] of the images of each part, which are indices of `found_classes`."""
        raise NotImplementedError

    # All sources share the rest.

    def source_digest(self) -> str:
        found = self.found_digest()
        if not self.table:
            return found
        names = [[index, name] for index, name in sorted(self.table.names.items())]
        return digest([found, self.table.index, names, self.table.outputs, self.among])

    def listing(self) -> Listing:
        labels = self.found_labels()
        if not self.table:
            return Listing(self.found_classes(), labels)
        answers = self._answers
        label = np.searchsorted(answers, self._logits)  # of each class that was found
        mapped = {part: known if part == "calibration" else label[known] for part, known in labels.items()}
        return Listing(tuple(self.table.names.get(index, str(index)) for index in answers.tolist()), mapped)

    def selected(self) -> tuple[tuple[int, ...], int]:
        if not self.table or self.among == "all":
            return (), 0
        return tuple(self._answers.tolist()), self.table.outputs

    def notes(self) -> dict[str, str]:
        if not self.table:
            return {}
        own, answers = len(np.unique(self._logits)), "these alone" if self.among == "own" else "all of them"
        return {
            "classes": f"{own} of the network's {self.table.outputs} (data.classes={self.classes}), which answers with "
            f"{answers} (data.among={self.among})"
        }

    @cached_property
    def _logits(self) -> np.ndarray:
        """logits[K] of the classes that were found.

        Raises:
            UserError: The table lacks a class.
        """
        assert self.table
        found = self.found_classes()
        if missing := [name for name in found if name not in self.table.index]:
            known = ", ".join([*self.table.index][:5])
            raise UserError(
                f"data.classes={self.classes} does not say which logits {len(missing)} of the {len(found)} classes of "
                f"{self.name} are: {first(missing)}. It knows {known}, ..."
            )
        return np.array([self.table.index[name] for name in found])

    @property
    def _answers(self) -> np.ndarray:
        """The logits that the network answers with, in their order."""
        assert self.table
        return np.arange(self.table.outputs) if self.among == "all" else np.unique(self._logits)


def read_table(classes: str, outputs: int | None) -> LogitTable:
    """Read which logit each class is.

    Args:
        classes: `imagenet`, or a .csv, .txt or .json file.
        outputs: Number of logits, or None for as many as the file tells.

    Raises:
        UserError: The file is missing or damaged, or names logits that there are not.
    """
    if classes == "imagenet":
        rows = [line.split(" ", 1) for line in IMAGENET.read_text().splitlines()]
        found = {name: index for index, (name, _) in enumerate(rows)}
        names = {index: name for index, (_, name) in enumerate(rows)}
    else:
        file = Path(classes).expanduser()
        try:
            text = file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"Cannot read data.classes={classes}: {error}. Give imagenet or a file. {FORMATS}"
            ) from error
        found, names = _from_json(file, text) if file.suffix == ".json" else _from_lines(file, text)
    if not found:
        raise UserError(f"{classes} names no classes. {FORMATS}")
    least = max(found.values()) + 1
    if outputs is not None and outputs < least:
        raise UserError(f"data.num_classes is {outputs}, but data.classes={classes} names the logit {least - 1}.")
    return LogitTable(found, names, outputs or least)


def _from_json(file: Path, text: str) -> tuple[dict[str, int], dict[int, str]]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise UserError(f"{file} is no JSON: {error}. {FORMATS}") from error
    if isinstance(values, list):
        values = {str(name): index for index, name in enumerate(values)}
    if not isinstance(values, dict):
        raise UserError(f"{file} holds a {type(values).__name__}. {FORMATS}")
    if wrong := [name for name, index in values.items() if type(index) is not int or index < 0]:
        raise UserError(f"{file}: {values[wrong[0]]!r} of {wrong[0]!r} is no index of a logit. {FORMATS}")
    return values, {index: name for name, index in values.items()}


def _from_lines(file: Path, text: str) -> tuple[dict[str, int], dict[int, str]]:
    """Read lines of one of the three kinds, all of the same: with a comma, with an index at the end, or a class."""
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if any("," in line for _, line in lines):
        rows = [(number, next(csv.reader([line]))) for number, line in lines]
        if rows[0][1][0].strip().lower() == "class":  # a header
            del rows[0]
    elif all(re.search(r"\s-?\d+$", line) for _, line in lines):
        rows = [(number, line.rsplit(None, 1)) for number, line in lines]
    else:
        rows = [(number, [line, str(index)]) for index, (number, line) in enumerate(lines)]
    found: dict[str, int] = {}
    names: dict[int, str] = {}
    for number, (name, *rest) in rows:
        index, *title = [cell.strip() for cell in rest] or [""]
        if not re.fullmatch(r"\d+", index) or len(title) > 1:
            raise UserError(f"{file}, line {number}: {index!r} is no index of a logit. {FORMATS}")
        if found.setdefault(name.strip(), int(index)) != int(index):
            raise UserError(f"{file}, line {number}: the class {name.strip()!r} was another logit before.")
        names.setdefault(int(index), title[0] if title and title[0] else name.strip())
    return found, names
