"""Stores decoded images as memory-mapped uint8 arrays, found again by the content of their source."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from filelock import FileLock
from rich.progress import track

from qexp.files import building, not_writable, write_json
from qexp.keys import key
from qexp.types import UserError, digest

T = TypeVar("T")
PARTS = ("train", "test")


@dataclass(frozen=True)
class Split:
    """The images of one part of a dataset.

    Attributes:
        images: images[N,H,W,C] uint8. They are memory-mapped if they come from the cache.
        labels: labels[N] int64.
    """

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Decoded:
    """All images of a dataset.

    Attributes:
        class_names: Names of the labels 0, 1, ...
        splits: The parts `train` and `test`.
    """

    class_names: tuple[str, ...]
    splits: dict[str, Split]


def open_or_build(folder: Path, decode: Callable[[], Decoded]) -> Decoded:
    """Open a folder of decoded images. If it is missing or damaged, decode the images into it first.

    The folder appears in one rename, so that one whose decoding was interrupted is never taken for a whole one.

    Args:
        folder: Folder of the decoded images.
        decode: Decodes them. Its errors are passed on.

    Raises:
        UserError: Nothing can be written there.
    """
    found = _read(folder)
    if found is None:
        with _lock(folder):  # the jobs of a sweep start together, and one decodes (or downloads) for all
            found = _read(folder) or _build(folder, decode)
    return found


def _read(folder: Path) -> Decoded | None:
    """Read a folder, or return None if it is missing or incomplete. Mapping a truncated array fails."""
    try:
        names = json.loads((folder / "classes.json").read_text())
        splits = {
            part: Split(np.load(folder / f"{part}_images.npy", mmap_mode="r"), np.load(folder / f"{part}_labels.npy"))
            for part in PARTS
        }
    except (OSError, ValueError, EOFError):
        return None
    return Decoded(tuple(names), splits)


def _build(folder: Path, decode: Callable[[], Decoded]) -> Decoded:
    decoded = decode()
    with building(folder) as partial:
        for part, split in decoded.splits.items():
            np.save(partial / f"{part}_images.npy", split.images)
            np.save(partial / f"{part}_labels.npy", split.labels.astype(np.int64))
        (partial / "classes.json").write_text(json.dumps(decoded.class_names))
        if folder.exists():  # damaged, or it would have been read
            shutil.rmtree(folder)
    built = _read(folder)
    if built is None:
        raise UserError(
            f"{folder} was written but cannot be read again. "
            "Is the disk in order? Or choose another folder with outputs=."
        )
    return built


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    file = folder.with_name(f"{folder.name}.lock")
    lock = FileLock(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise not_writable(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def content_digest(files: Sequence[Path], root: Path, memo: Path) -> str:
    """SHA-256 (hex) of the names and bytes of files.

    Reading 60,000 files takes seconds, so the digest is stored under the files' names, sizes and times.

    Args:
        files: Files below `root`.
        root: Folder to which their names are relative.
        memo: Folder in which digests are stored.

    Raises:
        UserError: A file cannot be read, or the digest cannot be stored. The message names the file.
    """
    names = [str(file.relative_to(root)) for file in files]
    stats = [(name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in zip(names, map(_stat, files), strict=True)]
    name = key("content", code=["qexp.data.cache"], root=str(root.resolve()), files=digest(stats))
    known = memo / f"{name[:24]}.json"
    try:
        return json.loads(known.read_text())["digest"]
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or damaged
        pass
    contents = progress(map(_bytes, files), f"Reading {root}", len(files))
    value = digest([(name, digest(content.hex())) for name, content in zip(names, contents, strict=True)])
    try:
        write_json(known, {"digest": value, "root": str(root)})
    except OSError as error:
        raise not_writable(known, error) from error
    return value


def progress(items: Iterable[T], what: str, total: int) -> Iterable[T]:
    """Pass on `items`, and show a bar that vanishes at the end if the output is a terminal."""
    return track(items, what, total, transient=True, disable=not sys.stdout.isatty())


def _stat(file: Path) -> os.stat_result:
    try:
        return file.stat()
    except OSError as error:
        raise _unreadable(file, error) from error


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: OSError) -> UserError:
    return UserError(f"Cannot read {file}: {error.strerror}. Replace or remove it, or allow reading.")


def split_train(labels: np.ndarray, validation_share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split images into a training and a validation part, in the same way for the same seed.

    The split is stratified: the rounded share of each class is for validation, but at least one image, and at least one
    is left for training. A class with a single image is only trained on.

    Args:
        labels: labels[N] of the images.
        validation_share: Share of the validation part.
        seed: Seed of the choice.

    Returns:
        Sorted indices of the training part and of the validation part.

    Raises:
        UserError: No class has two images, so that nothing is left for validation.
    """
    rng = np.random.default_rng(seed)
    validation = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = max(1, round(len(members) * validation_share))
        validation.append(members[: min(count, len(members) - 1)])
    chosen = np.sort(np.concatenate(validation))
    if not len(chosen):
        raise UserError(
            "The training part has no class with two images: none is left for validation. Add images to data.root."
        )
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def channel_statistics(images: np.ndarray, indices: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of images[N,H,W,C] / 255, over the images with the given indices.

    They are exact, because they are computed from histograms.
    """
    channels = images.shape[-1]
    counts = np.zeros((channels, 256))
    for start in range(0, len(indices), 4096):
        chunk = images[indices[start : start + 4096]]
        for channel in range(channels):
            counts[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    mean = (counts @ values) / counts.sum(1)
    variance = (counts @ values**2) / counts.sum(1) - mean**2
    # Normalising a constant channel would divide by zero. 1/255 is the smallest step of a pixel.
    std = np.maximum(np.sqrt(np.maximum(variance, 0)), 1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())
