"""What all map-style datasets of torch share: their items are (image, class), one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image

from qexp.data.classes import MappedData
from qexp.data.reading import prepared
from qexp.progress import progress
from qexp.types import UserError

LABELS = ("targets", "labels", "_labels")  # attributes in which datasets keep their classes
SAMPLES = ("samples", "_samples")  # those in which they keep (file, class)
CHANNELS = (1, 3, 4)
TWICE = 8  # images that are read twice, to find out whether a transform changes them at random


class ItemsData(MappedData):
    """Images that datasets give, one for training and one for testing.

    A source of them defines `_datasets` and `found_digest`, and everything else is shared.
    """

    @cached_property
    def _datasets(self) -> dict[str, Any]:
        """The dataset of each part, which has at least one item.

        Raises:
            UserError: One cannot be made, or is none.
        """
        raise NotImplementedError

    def called(self, part: str) -> str:
        """What messages call the dataset of a part."""
        return f"data.{part}"

    @cached_property
    def _known_labels(self) -> dict[str, np.ndarray | None]:
        """labels[N] of each part, as the dataset keeps them, or None where it keeps none."""
        return {part: kept_labels(dataset) for part, dataset in self._datasets.items()}

    @cached_property
    def _labels(self) -> dict[str, np.ndarray]:
        found = {}
        for part, known in self._known_labels.items():
            if known is None:
                every = range(len(self._datasets[part]))
                asked = progress(every, f"Reading the classes of {self.name} {part}", len(every))
                known = np.array([self._item(part, index)[1] for index in asked], np.int64)
            if known.min() < 0:
                raise UserError(
                    f"{self.called(part)} has an image of the class {known.min()}; classes are numbers from 0."
                )
            found[part] = known
        return found

    def found_labels(self) -> dict[str, np.ndarray]:
        self.found_classes()
        return self._labels

    def found_classes(self) -> tuple[str, ...]:
        named = {part: names for part, dataset in self._datasets.items() if (names := _class_names(dataset))}
        if len({*named.values()}) > 1:
            both, listed = " and ".join(map(self.called, named)), " and ".join(map(str, named.values()))
            raise UserError(f"The classes of {both} differ: {listed}.")
        names = next(iter(named.values()), ())
        highest = {part: int(labels.max()) for part, labels in self._labels.items()}
        for part, label in highest.items():
            if names and label >= len(names):
                raise UserError(
                    f"{self.called(part)} has an image of the class {label}, but names only {len(names)} classes."
                )
        return names or tuple(str(label) for label in range(max(highest.values()) + 1))

    def decode(self, part: str, indices: np.ndarray) -> Iterable[np.ndarray]:
        for index in indices[:TWICE].tolist():
            if not np.array_equal(self._read(part, index), self._read(part, index)):
                raise UserError(
                    f"Item {index} of {self.called(part)} is another image each time that it is read. Leave out the "
                    "dataset's transform: qexp changes training images itself (data.augmentation)."
                )
        # One after the other, because nothing says that a dataset may be asked by several threads.
        images = (self._read(part, index) for index in indices.tolist())
        return progress(images, f"Decoding {self.name} {part}", len(indices))

    def _read(self, part: str, index: int) -> np.ndarray:
        image, where = self._labelled(part, index), f"Item {index} of {self.called(part)}"
        try:
            return prepared(self._picture(image, where), self.how)
        except UserError:
            raise
        except Exception as error:  # Pillow raises all sorts of errors on damaged files
            raise UserError(f"{where} cannot be prepared: {error}.") from error

    def _labelled(self, part: str, index: int) -> Any:
        """The image of an item, whose class is the one that the dataset's list of classes says."""
        image, label = self._item(part, index)
        known = self._known_labels[part]
        if known is not None and known[index] != label:
            raise UserError(
                f"Item {index} of {self.called(part)} has the class {label}, but the dataset's list of classes says "
                f"{known[index]}."
            )
        return image

    def _picture(self, image: Any, where: str) -> Image.Image:
        """The image of an item as Pillow's. Errors: those of `picture`."""
        return picture(image, where)

    def _item(self, part: str, index: int) -> tuple[Any, int]:
        """The image and the class of an item.

        Raises:
            UserError: It cannot be read or is something else.
        """
        where = f"Item {index} of {self.called(part)}"
        try:
            item = self._datasets[part][index]
        except Exception as error:  # datasets raise all sorts of errors
            raise UserError(f"{where} cannot be read: {type(error).__name__}: {error}") from error
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            raise UserError(f"{where} is a {type(item).__name__}, and not (image, class).")
        label = np.asarray(item[1])
        if label.size != 1 or label.dtype.kind not in "iu":
            raise UserError(f"{where} has the class {item[1]!r}; it must be a whole number.")
        return item[0], int(label.reshape(()))


def kept_labels(dataset: Any) -> np.ndarray | None:
    """labels[N] int64 that a dataset keeps, or None if it keeps none or changes them when an item is read."""
    if getattr(dataset, "target_transform", None) is not None:
        return None
    lists = [getattr(dataset, name, None) for name in LABELS]
    for samples in (getattr(dataset, name, None) for name in SAMPLES):
        if isinstance(samples, Sequence) and all(
            isinstance(each, (tuple, list)) and len(each) == 2 for each in samples
        ):
            lists.append([label for _, label in samples])
    for labels in lists:
        if isinstance(labels, (list, tuple, np.ndarray, torch.Tensor)) and len(labels) == len(dataset):
            found = np.asarray(labels)
            if found.dtype.kind in "iu" and found.size == len(dataset):
                return found.reshape(-1).astype(np.int64)
    return None


def _class_names(dataset: Any) -> tuple[str, ...]:
    """Names of a dataset's classes, or of the dataset's that it is a part of. Empty if it names none."""
    names = getattr(dataset, "classes", None) or getattr(getattr(dataset, "dataset", None), "classes", None)
    if not isinstance(names, (list, tuple)):
        return ()
    # ImageNet has a tuple of synonyms for each class.
    return tuple(str(name[0] if isinstance(name, (list, tuple)) and name else name) for name in names)


def picture(image: Any, where: str) -> Image.Image:
    """The image of an item as Pillow's, from Pillow's or from uint8 [H,W], [H,W,C] or [C,H,W].

    Of the two orders, tensors are taken for [C,H,W] and arrays for [H,W,C] where both are possible.

    Raises:
        UserError: It is something else.
    """
    if isinstance(image, Image.Image):
        return image
    if not isinstance(image, (np.ndarray, torch.Tensor)):
        raise UserError(f"{where} has a {type(image).__name__} in place of an image of Pillow or of uint8.")
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        raise UserError(
            f"{where} has pixels of the type {pixels.dtype}. qexp prepares images itself, from those of Pillow or of "
            "uint8: leave out the dataset's transform, and say with data.resize, data.mean, ... or data.transform how."
        )
    first, last = (pixels.ndim == 3 and pixels.shape[axis] in CHANNELS for axis in (0, -1))
    if first and (not last or isinstance(image, torch.Tensor)):
        pixels = pixels.transpose(1, 2, 0)
    elif not last and pixels.ndim != 2:
        raise UserError(f"{where} has pixels of the shape {pixels.shape}; give [H,W], [H,W,C] or [C,H,W].")
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))
