"""Small datasets as users write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset
from torchvision.datasets import ImageFolder


def pixels(index: int, shape: tuple[int, ...] = (8, 8, 3)) -> np.ndarray:
    return np.random.default_rng(index).integers(256, size=shape, dtype=np.uint8)


class Toy(Dataset[Any]):
    """Item i has the pixels of the seed i and the class i % 3, in a form that is asked for.

    Args:
        size: Number of items.
        form: What an item is.
        keep: Attribute that keeps the classes, or empty.
        names: Names of the classes.
        file: Path of a file that is named only.
    """

    def __init__(
        self, size: int = 12, form: str = "image", keep: str = "", names: list[Any] | None = None, file: str = ""
    ):
        self.size, self.form, self.file, self.asked = size, form, file, 0
        if keep:
            setattr(self, keep, [index % 3 for index in range(size)])
        if names:
            self.classes = names

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        if index >= self.size:
            raise IndexError(index)
        self.asked += 1
        return self.item(index)

    def item(self, index: int) -> Any:
        array, label = pixels(index), index % 3
        forms = {
            "image": lambda: (Image.fromarray(array), label),
            "array": lambda: (array, np.int64(label)),
            "grey array": lambda: (array[..., 0], label),
            "channels first": lambda: (array.transpose(2, 0, 1), label),
            "tensor": lambda: (torch.from_numpy(array).permute(2, 0, 1), torch.tensor(label)),
            "tensor of one channel": lambda: (torch.from_numpy(array[..., :1]).permute(2, 0, 1), torch.tensor([label])),
            "more": lambda: (Image.fromarray(array), label, "a caption"),
            "float tensor": lambda: (torch.from_numpy(array).permute(2, 0, 1) / 255, label),
            "16 bits": lambda: (array.astype(np.uint16), label),
            "two channels": lambda: (array[..., :2], label),
            "five channels": lambda: (np.zeros((8, 8, 5), np.uint8), label),
            "path": lambda: ("cat.png", label),
            "dict": lambda: {"image": array, "label": label},
            "alone": lambda: Image.fromarray(array),
            "name": lambda: (Image.fromarray(array), "cat"),
            "share": lambda: (Image.fromarray(array), 0.5),
            "one-hot": lambda: (Image.fromarray(array), np.eye(3, dtype=int)[label]),
            "negative": lambda: (Image.fromarray(array), label - 1),
            "wrong class": lambda: (Image.fromarray(array), label + 1),
            "32 bits": lambda: (Image.fromarray(array[..., 0].astype(np.int32)), label),
            "noise": lambda: (Image.fromarray(pixels(1000 + self.asked)), label),
            "error": lambda: (_ for _ in ()).throw(OSError("disk on fire")),
        }
        return forms[self.form]()


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])


class Lazy:
    """Files that are found when an item is asked for, and kept nowhere."""

    def __init__(self, root: str):
        self.root = Path(root)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.open(self.root / f"{index}.png"), index % 3


def part_of_folder(root: str, indices: list[int]) -> Subset[Any]:
    return Subset(ImageFolder(root), indices)


def to_float(image: Image.Image) -> Tensor:
    """What a user's transform may make of an image: x[3,8,8] in 0..2."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 127.5
