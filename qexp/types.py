"""The nouns and errors that all packages of qexp share.

The module imports nothing heavy, so that a measuring child process can import it at no cost.
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
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

# The `transform` of a preprocessing where a dataset gives what the network takes: x[C,H,W] of floats.
AS_GIVEN = "qexp.data.transforming.as_given"


class UserError(Exception):
    """An error that the user can put right. The message says what is wrong, what was given and what to do."""


class Unsupported(Exception):
    """A combination that cannot exist, such as dynamic quantisation to 3 bits. It becomes one row `unsupported`."""


def digest(value: Any) -> str:
    """SHA-256 (hex) of a value that JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the name of its class if the message is empty."""
    return str(error).partition("\n")[0] or type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: up to three similar names, then all known ones."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
    return f"{hint}Known: {', '.join(names)}"


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes what a network takes. It belongs to the network and goes wherever that goes.

    The steps are those of qexp.data.pixels: turn upright, convert to 8-bit grey or colour, resize, crop or pad, and
    compute (value / 255 * pixel_range - mean) / std of each channel.

    Attributes:
        channels: 1 for grey images, 3 for colour.
        size: (H, W) in pixels.
        mean: Mean of each channel, for values in 0..pixel_range.
        std: Standard deviation of each channel, for the same values.
        resize: `stretch` to the size regardless of the aspect ratio, `crop` the centre, or `pad` with black.
        resize_to: Shorter side, in pixels, of the resized image from which the centre is cropped. None if the image is
            to cover the size as closely as possible.
        interpolation: `bilinear`, `bicubic`, `lanczos` or `nearest`.
        orient: Whether images are turned as their EXIF data say.
        pixel_range: Value of a white pixel before mean and deviation are applied.
        transform: Dotted name of a function of the user, which takes a PIL image and returns x[C,H,W] float32, and
            which takes the place of all steps. Empty if there is none.

    Raises:
        ValueError: There is not one mean and one deviation for each channel.
    """

    channels: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str = "stretch"
    resize_to: int | None = None
    interpolation: str = "bilinear"
    orient: bool = False
    pixel_range: float = 1.0
    transform: str = ""

    def __post_init__(self) -> None:
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"{self.channels} channels, but {len(self.mean)} means and {len(self.std)} deviations")

    @property
    def geometry(self) -> dict[str, Any]:
        """What decides the pixels, before mean and deviation are applied to them."""
        values = asdict(self)
        del values["mean"], values["std"], values["pixel_range"]
        return values

    @property
    def steps(self) -> str:
        """What is done, in words."""
        if self.transform:
            return "as the dataset gives them" if self.transform == AS_GIVEN else f"by {self.transform}"
        height, width = self.size
        first = "turned as EXIF says, " * self.orient + ("grey" if self.channels == 1 else "RGB")
        short = f" with a short side of {self.resize_to}" if self.resize_to else ""
        shaped = {"stretch": "stretched", "crop": f"resized{short} and cropped", "pad": "resized and padded"}
        values = "value / 255" + f" * {self.pixel_range:g}" * (self.pixel_range != 1)
        mean, std = ("/".join(f"{value:.4g}" for value in each) for each in (self.mean, self.std))
        return f"{first}, {shaped[self.resize]} to {height}x{width} ({self.interpolation}), ({values} - {mean}) / {std}"

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Preprocessing:
        tuples: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**tuples)


@dataclass(frozen=True)
class DataSpec:
    """What a network and an artifact have to know of a dataset.

    Attributes:
        class_names: Names of the classes, in the order of the logits.
        preprocessing: How its images are prepared.
        digest: Digest of what the images were decoded from, and of how. It is the same for a copy of the files.
        split_seed: Together with `validation_share`, decides which training images form the validation part.
        pretend: Whether the images have no meaning, so that accuracy on them is never reported.
        validation_share: Share of each class of the training images that is in the validation part.
        decoder: Key of the code that decodes the images, and of the version of their files. Empty in files of earlier
            versions.
        logits: Where the network answers with some of its logits only, their indices, one for each class. Otherwise
            empty, as in files of earlier versions.
        outputs: Number of logits of the network that `logits` are taken from, or 0.

    Raises:
        UserError: There are fewer than two classes.
    """

    name: str
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    digest: str
    split_seed: int = 0
    pretend: bool = False
    validation_share: float = 0.1
    decoder: str = ""
    logits: tuple[int, ...] = ()
    outputs: int = 0

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise UserError(f"data {self.name!r} has {len(self.class_names)} class(es); a classifier needs at least 2.")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def network_outputs(self) -> int:
        """Number of logits that the network is built with, which may be more than the classes that it answers with."""
        return self.outputs or self.num_classes

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return (self.preprocessing.channels, *self.preprocessing.size)

    @property
    def image_size(self) -> int | str:
        """Side of the images in pixels, or `HxW` if they are not square."""
        height, width = self.preprocessing.size
        return height if height == width else f"{height}x{width}"

    @property
    def cache_name(self) -> str:
        """Name of the folder that holds the decoded images."""
        return cache_name(self.name, self.digest, self.decoder)

    def evaluation_file(self, part: str, images: int | None) -> str:
        """Name of the file, in the folder of decoded images, that lists which images of a part are evaluated.

        Args:
            part: `test` or `validation`.
            images: How many, or None for all.
        """
        whole = "test" if part == "test" else f"validation-{self.split_seed}-{self.validation_share:g}"
        return f"{whole}{f'-{images}' if images else ''}.json"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DataSpec:
        if "preprocessing" not in values:  # as version 0.1 had it at first
            old = {name: values.pop(name) for name in ("channels", "image_size", "mean", "std")}
            side = old.pop("image_size")
            values["preprocessing"] = {**old, "size": [side, side]}
        values["preprocessing"] = Preprocessing.from_json(values["preprocessing"])
        tuples: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**tuples)


def cache_name(data: str, content: str, decoder: str) -> str:
    """Name of the folder that holds the decoded images of a dataset.

    Args:
        data: Name of the dataset.
        content: Digest of what the images are decoded from.
        decoder: Key of the code that decodes them, or empty.
    """
    return "-".join([data, content[:16], *([decoder] if decoder else [])])


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of those of `packages` that are installed, which qexp itself may not be in a clone."""
    found = {"python": platform.python_version()}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def other_version(their: Any) -> str:
    """What an error says of a file that another version of qexp wrote. Empty if this one did, or it does not say.

    Args:
        their: The versions in the file, by name of the package.
    """
    wrote, reads = their.get("qexp") if isinstance(their, dict) else None, versions("qexp").get("qexp", "of a clone")
    if wrote in (None, reads):
        return ""
    return f" qexp {wrote} wrote it, and this is qexp {reads}. What pip install qexp=={wrote} installs reads it."


SCRIPTS = ("train", "compress", "benchmark")  # programs that are scripts of a clone too


def command_line() -> str:
    """The command that started this process, quoted so that a shell takes it as it is."""
    program, *words = sys.argv
    called = program.split() if program.startswith("qexp ") else ["python", os.path.basename(program)]
    return shlex.join([*called, *words])


def typed(program: str) -> str:
    """How the user of this process calls one of qexp's programs.

    Args:
        program: Its name, as the command `qexp` knows it.

    Returns:
        `qexp NAME` or, where a script of a clone was started, `python train.py` or `python -m qexp.report`.
    """
    if os.path.basename(sys.argv[0]) not in {f"{script}.py" for script in SCRIPTS}:
        return f"qexp {program}"
    if program in SCRIPTS:
        return f"python {program}.py"
    return f"python -m qexp.{'tracking ' if program in ('sync', 'import') else ''}{program}"
