"""The nouns of qexp: small frozen dataclasses, validated at birth, that every package shares.

Imports nothing heavy, so that a measuring child process may import it for free.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any


class UserError(Exception):
    """Something the user can put right: the message says what is wrong, what was given and what to do."""


class Unsupported(Exception):
    """A combination that cannot exist (dynamic quantisation to 3 bits); it becomes one `unsupported` row."""


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-serialisable value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names, those most like `name` first: the end of an error about an unknown name."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
    return f"{hint}Known: {', '.join(names)}"


@dataclass(frozen=True)
class DataSpec:
    """What a network and an artifact must know of a dataset.

    mean and std are per channel, of pixel values in 0..1, over the training part.
    `pretend` data has no meaning, so accuracy on it is never reported.
    """

    name: str
    class_names: tuple[str, ...]
    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str
    split_seed: int = 0
    pretend: bool = False

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise UserError(f"data {self.name!r} has {len(self.class_names)} class(es); a classifier needs at least 2.")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"{self.channels} channels, but {len(self.mean)} means and {len(self.std)} deviations")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return (self.channels, self.image_size, self.image_size)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DataSpec:
        lists = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**lists)


def versions(*packages: str) -> dict[str, str]:
    """The installed versions of `packages` and of Python."""
    return {"python": platform.python_version(), **{package: metadata.version(package) for package in packages}}


def command_line() -> str:
    """The command this process was started with, ready to be pasted into a shell."""
    return shlex.join(["python", os.path.basename(sys.argv[0]), *sys.argv[1:]])
