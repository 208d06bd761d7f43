"""Tells what a dataset holds in memory, and which files it names, without decoding an image."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset


class Held:
    """What an object holds, in values that JSON can hold.

    Arrays are digested whole, and so are lists. Of objects of other kinds, such as transforms and open files, only the
    class counts, unless they are datasets too. Files that are named anywhere count by size and time.

    Args:
        *objects: The objects.

    Attributes:
        content: What they hold, with the size of each file that is named.
        times: When the content of these files was changed last, in nanoseconds.
    """

    def __init__(self, *objects: Any):
        self.times: list[int] = []
        self._seen: set[int] = set()
        self.content = [self._of(each) for each in objects]

    def _of(self, value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, (str, Path)):
            return self._named(str(value))
        if isinstance(value, np.memmap):  # may be larger than the memory
            return [self._named(str(value.filename)), value.shape, str(value.dtype)]
        if isinstance(value, Tensor):
            return self._of(value.detach().cpu().numpy())
        if isinstance(value, np.generic):
            return self._of(value.item())
        if isinstance(value, np.ndarray) and value.dtype != object:
            return [hashlib.sha256(value.tobytes()).hexdigest(), value.shape, str(value.dtype)]
        if isinstance(value, bytes):
            return hashlib.sha256(value).hexdigest()
        if isinstance(value, dict):
            return self._of_dict(value)
        if isinstance(value, (list, tuple)):
            return [self._of(each) for each in value]
        if isinstance(value, np.ndarray):
            return self._of(value.tolist())
        if hasattr(value, "to_numpy"):  # tables of pandas
            return self._of(value.to_numpy())
        return self._of_object(value)

    def _of_dict(self, values: dict[Any, Any]) -> Any:
        lists: dict[int, Any] = {}  # torchvision has some twice, which may name a million files
        found = []
        for name, value in values.items():
            if isinstance(value, list) and lists.setdefault(id(value), name) != name:
                found.append([self._of(name), "is", self._of(lists[id(value)])])
            else:
                found.append([self._of(name), self._of(value)])
        return found

    def _of_object(self, value: Any) -> Any:
        name = f"{type(value).__module__}.{type(value).__qualname__}"
        if not isinstance(value, Dataset) or id(value) in self._seen:
            return name
        self._seen.add(id(value))
        return [name, self._of(vars(value))]

    def _named(self, text: str) -> Any:
        """A string, with the size of the file if it is the path of one."""
        if os.sep not in text:
            return text
        try:
            state = os.stat(text)
        except (OSError, ValueError):  # not there, or no path at all
            return text
        if not stat.S_ISREG(state.st_mode):
            return text
        self.times.append(state.st_mtime_ns)
        return [text, state.st_size]
