"""Any map-style dataset of torch, of torchvision or of the user, whose items are (image, class)."""

from __future__ import annotations

import os
import sys
from functools import cached_property
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from qexp.data.held import Held
from qexp.data.items import ItemsData
from qexp.data.store import PARTS
from qexp.keys import key
from qexp.types import UserError, digest


class DatasetData(ItemsData):
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
