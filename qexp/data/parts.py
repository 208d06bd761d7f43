"""Images and classes in the forms in which Python programs hold them, as datasets to train, test and calibrate with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from qexp.data.items import kept_labels
from qexp.data.labels import TEST_SEED, TEST_SHARE
from qexp.data.splitting import split_train
from qexp.types import UserError, nearest

NAMES = ("train", "test", "calibration")
FORMS = (
    "Give a folder, (images, labels) as arrays, a torch dataset whose items are (image, class), or "
    "{'train': ..., 'test': ...} with one of these for each"
)
UNLABELLED = (
    "Accuracy needs classes: give (images, labels), or a dataset whose items are (image, class). Images without "
    "classes can be calibrated with: {'calibration': images, 'test': (images, labels)}"
)


class Parts:
    """Datasets of a Python program, by what they are for.

    Args:
        given: A torch dataset whose items are (image, class); a pair of arrays or tensors, images and labels[N]; or a
            mapping of `train`, `test` and `calibration` to one of these, where `calibration` needs no classes, and of
            `class_names` to their names. Of a single dataset, a fixed fifth of each class is set aside to test on.

    Attributes:
        datasets: The dataset of each part, whose items are (image, class).
        class_names: Names of the classes, or empty for those that the datasets have.
        split: Whether the test images were set aside here.
        seen: Digests of images that were looked at, by what decides them, so that one call looks at them once.

    Raises:
        UserError: It is something else.
    """

    def __init__(self, given: Any):
        self.seen: dict[str, Any] = {}
        self.class_names: tuple[str, ...] = ()
        self.split = not isinstance(given, Mapping)
        if not isinstance(given, Mapping):
            self.name = _name(given)
            whole = _dataset(given, "data")
            self.datasets = dict(zip(("train", "test"), _set_aside(whole), strict=True))
            return
        given = dict(given)
        self.class_names = tuple(map(str, given.pop("class_names", ())))
        for name in given:
            if name not in NAMES:
                raise UserError(f"data has a part {name!r}. {nearest(str(name), (*NAMES, 'class_names'))}")
        if "test" not in given or len(given) < 2:
            raise UserError(
                f"data has the parts {', '.join(given) or 'none'}. Give 'test', and 'train' or 'calibration' beside it."
            )
        self.name = _name(given.get("train", given["test"]))
        self.datasets = {
            part: _Unlabelled(given[part]) if part == "calibration" else _dataset(given[part], f"data[{part!r}]")
            for part in NAMES
            if part in given
        }


class ArrayItems(Dataset):
    """Arrays of images and labels as a dataset.

    Args:
        images: Images [N,...].
        labels: labels[N], whole numbers.
        where: What messages call them.

    Raises:
        UserError: They do not fit each other.
    """

    def __init__(self, images: Any, labels: Any, where: str):
        self.images, self.targets = images, np.asarray(labels)
        if self.targets.ndim == 2 and self.targets.shape[1:] != (1,):
            raise UserError(
                f"The labels of {where} have the shape {self.targets.shape}; give the number of each image's class, "
                "such as labels.argmax(1)."
            )
        if self.targets.dtype.kind not in "iu" or self.targets.size != len(self.targets):
            raise UserError(
                f"The labels of {where} are of the type {self.targets.dtype} and shape {self.targets.shape}; they must "
                "be whole numbers from 0, one for each image."
            )
        if len(images) != len(self.targets):
            raise UserError(f"{where} has {len(images)} images and {len(self.targets)} labels; give one for each.")

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.images[index], int(self.targets[index])


class _Unlabelled(Dataset):
    """A dataset or array of images without classes, each of which gets the class 0, which nothing looks at."""

    def __init__(self, given: Any):
        _check_indexed(given, "data['calibration']")
        self.images = given
        self.targets = np.zeros(len(given), np.int64)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        item = self.images[index]
        return (item[0] if isinstance(item, (tuple, list)) else item), 0


class _Chosen(Subset):
    """Some items of a dataset, whose labels are known."""

    def __init__(self, dataset: Any, indices: np.ndarray, labels: np.ndarray):
        super().__init__(dataset, indices.tolist())
        self.targets = labels[indices]


def _name(given: Any) -> str:
    inner = given.dataset if isinstance(given, Subset) else given
    return "arrays" if isinstance(inner, (tuple, list, np.ndarray, torch.Tensor)) else type(inner).__name__


def _dataset(given: Any, where: str) -> Any:
    """A dataset whose items are (image, class).

    Raises:
        UserError: It is something else. The message says what to do.
    """
    if isinstance(given, (tuple, list)) and len(given) == 2 and all(_is_array(each) for each in given):
        images, labels = given
        return ArrayItems(images, labels, where)
    if _is_array(given):
        raise UserError(f"{where} has images without classes. {UNLABELLED}.")
    _check_indexed(given, where)
    try:
        item = given[0]
    except Exception as error:  # datasets raise all sorts of errors
        raise UserError(f"Item 0 of {where} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        raise UserError(f"Item 0 of {where} is a {type(item).__name__}, and not (image, class). {UNLABELLED}.")
    return given


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, torch.Tensor))


def _check_indexed(given: Any, where: str) -> None:
    """Check that items can be read as often as they are needed, in any order.

    Raises:
        UserError: They cannot, or there are none.
    """
    if isinstance(given, DataLoader):
        raise UserError(f"{where} is a DataLoader. Give its dataset, loader.dataset: qexp makes batches itself.")
    if isinstance(given, (Iterator, IterableDataset)) or not (
        hasattr(given, "__getitem__") and hasattr(given, "__len__")
    ):
        kind = type(given).__name__
        why = (
            "which gives each image once and then ends, but qexp reads images several times. Give list(...) of it"
            if hasattr(given, "__iter__")
            else "which has no __getitem__ and __len__"
        )
        raise UserError(f"{where} is a {kind}, {why}. {FORMS}.")
    if not len(given):
        raise UserError(f"{where} is empty.")


def _set_aside(dataset: Any) -> tuple[Any, Any]:
    """Split a dataset into images to train on and a fixed fifth of each class to test on."""
    labels = kept_labels(dataset)
    if labels is None:
        labels = np.array([int(dataset[index][1]) for index in range(len(dataset))])
    train, test = split_train(labels, TEST_SHARE, TEST_SEED)
    return _Chosen(dataset, train, labels), _Chosen(dataset, test, labels)
