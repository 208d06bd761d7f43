"""Any map-style dataset of torch, of torchvision or of the user, whose items are (image, class)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from qexp.data.classes import MappedData
from qexp.data.held import Held
from qexp.data.reading import prepared
from qexp.data.store import PARTS
from qexp.keys import key
from qexp.progress import progress
from qexp.types import UserError, digest

LABELS = ("targets", "labels", "_labels")  # attributes in which datasets keep their classes
SAMPLES = ("samples", "_samples")  # those in which they keep (file, class)
CHANNELS = (1, 3, 4)
TWICE = 8  # images that are read twice, to find out whether a transform changes them at random


class DatasetData(MappedData):
    """Images that a dataset for training and one for testing give, which are made from two nodes of the config.

    What decides the images is known without decoding them: the nodes with all their arguments, the number of items, and
    what the datasets hold, such as arrays of pixels, lists of files and classes. The files that are named there count
    by size and time, and the code of the datasets counts too. Since the nodes name folders, a copy elsewhere is other
    data: nothing says that an argument is only a place. What cannot be seen is a change of files that a dataset keeps
    no list of, in a folder whose name stays: `force=true` is not enough then, but `data.name` may be changed.

    Args:
        name: Name of the data, or None for that of the class of the training images.
        train: Node of the dataset of training images.
        test: Node of the dataset of test images.
        augmentation: Node of the augmentation.
        **common: What all data take.

    Raises:
        UserError: A node lacks a value.
    """

    def __init__(self, name: str | None, train: Any, test: Any, augmentation: Any, **common: Any):
        self.nodes = {part: _plain(node, f"data.{part}") for part, node in zip(PARTS, (train, test), strict=True)}
        super().__init__(
            name=name or self.nodes["train"]["_target_"].rpartition(".")[2],
            augmentation=_made(augmentation, "data.augmentation"),
            **common,
        )

    @cached_property
    def _datasets(self) -> dict[str, Any]:
        """The dataset of each part, which has at least one item.

        Raises:
            UserError: One cannot be made, or is none.
        """
        found = {}
        for part, node in self.nodes.items():
            found[part] = dataset = _made(node, f"data.{part}")
            if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
                raise UserError(
                    f"data.{part}._target_={node['_target_']} gave a {type(dataset).__name__}, which is no "
                    "map-style dataset: it needs __getitem__ and __len__."
                )
            if not len(dataset):
                raise UserError(f"The dataset of data.{part} is empty.")
        return found

    @cached_property
    def _held(self) -> Held:
        return Held(self.nodes, *(getattr(dataset, "__dict__", {}) for dataset in self._datasets.values()))

    def found_digest(self) -> str:
        known = {part: None if labels is None else labels.tolist() for part, labels in self._known_labels.items()}
        return digest([self._held.content, {part: len(each) for part, each in self._datasets.items()}, known])

    def source_version(self) -> str:
        return key("dataset", **self.nodes, times=self._held.times)

    @cached_property
    def _known_labels(self) -> dict[str, np.ndarray | None]:
        """labels[N] of each part, as the dataset keeps them, or None where it keeps none."""
        return {part: _kept_labels(dataset) for part, dataset in self._datasets.items()}

    @cached_property
    def _labels(self) -> dict[str, np.ndarray]:
        found = {}
        for part, known in self._known_labels.items():
            if known is None:
                every = range(len(self._datasets[part]))
                asked = progress(every, f"Reading the classes of {self.name} {part}", len(every))
                known = np.array([self._item(part, index)[1] for index in asked], np.int64)
            if known.min() < 0:
                raise UserError(f"data.{part} has an image of the class {known.min()}; classes are numbers from 0.")
            found[part] = known
        return found

    def found_labels(self) -> dict[str, np.ndarray]:
        self.found_classes()
        return self._labels

    def found_classes(self) -> tuple[str, ...]:
        names = {part: _class_names(dataset) for part, dataset in self._datasets.items()}
        if names["train"] and names["test"] and names["train"] != names["test"]:
            raise UserError(f"The classes of data.train and data.test differ: {names['train']} and {names['test']}.")
        named = names["train"] or names["test"]
        highest = {part: int(labels.max()) for part, labels in self._labels.items()}
        for part, label in highest.items():
            if named and label >= len(named):
                raise UserError(f"data.{part} has an image of the class {label}, but names only {len(named)} classes.")
        return named or tuple(str(label) for label in range(max(highest.values()) + 1))

    def decode(self, part: str, indices: np.ndarray) -> Iterable[np.ndarray]:
        for index in indices[:TWICE].tolist():
            if not np.array_equal(self._read(part, index), self._read(part, index)):
                raise UserError(
                    f"Item {index} of data.{part} is another image each time that it is read. Leave out the dataset's "
                    "transform: qexp changes training images itself (data.augmentation)."
                )
        # One after the other, because nothing says that a dataset may be asked by several threads.
        images = (self._read(part, index) for index in indices.tolist())
        return progress(images, f"Decoding {self.name} {part}", len(indices))

    def _read(self, part: str, index: int) -> np.ndarray:
        image, label = self._item(part, index)
        known = self._known_labels[part]
        if known is not None and known[index] != label:
            raise UserError(
                f"Item {index} of data.{part} has the class {label}, but the dataset's list of classes says "
                f"{known[index]}."
            )
        where = f"Item {index} of data.{part}"
        try:
            return prepared(_picture(image, where), self.how)
        except UserError:
            raise
        except Exception as error:  # Pillow raises all sorts of errors on damaged files
            raise UserError(f"{where} cannot be prepared: {error}.") from error

    def _item(self, part: str, index: int) -> tuple[Any, int]:
        """The image and the class of an item.

        Raises:
            UserError: It cannot be read or is something else.
        """
        where = f"Item {index} of data.{part}"
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


def _plain(node: Any, name: str) -> dict[str, Any]:
    """A node of the config in plain values.

    Raises:
        UserError: It lacks a value.
    """
    values: Any = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    if not isinstance(values, dict) or "_target_" not in values:
        raise UserError(f"{name} is {values!r}. Give {name}._target_=CLASS, such as torchvision.datasets.CIFAR10.")
    for missing in sorted(OmegaConf.missing_keys(values)):
        raise UserError(f"{name}.{missing} is not set. Give {name}.{missing}=VALUE.")
    return values


def _made(node: Any, name: str) -> Any:
    """What a node describes. It may be in the current folder.

    Raises:
        UserError: It cannot be made. The message names the key.
    """
    if not {"", os.getcwd()} & set(sys.path):  # `python path/to/train.py` puts only that script's folder there
        sys.path.append(os.getcwd())
    try:
        return instantiate(node, _recursive_=True, _convert_="all")
    except Exception as error:
        cause = error.__cause__ or error  # Hydra wraps what a constructor raises
        if isinstance(cause, UserError):
            raise cause from error
        raise UserError(f"Cannot make {name}, {node['_target_']}: {type(cause).__name__}: {cause}") from error


def _kept_labels(dataset: Any) -> np.ndarray | None:
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


def _picture(image: Any, where: str) -> Image.Image:
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
