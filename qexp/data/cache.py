"""Images decoded once: uint8 arrays on disk, found again by the content of their source, memory-mapped."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qexp.types import UserError, digest


@dataclass(frozen=True)
class Split:
    """images[N,H,W,C] uint8 and labels[N] int64, both memory-mapped."""

    images: np.ndarray
    labels: np.ndarray


Decoded = dict[str, tuple[np.ndarray, np.ndarray]]  # split name -> (images[N,H,W,C] uint8, labels[N])


def open_or_build(folder: Path, decode: Callable[[], Decoded]) -> dict[str, Split]:
    """The arrays in `folder`, decoded into it first where they are missing.

    The folder appears in one rename, so an interrupted decoding leaves nothing that could be mistaken for a whole one.
    """
    if not folder.exists():
        with building(folder) as partial:
            for split, (images, labels) in decode().items():
                np.save(partial / f"{split}_images.npy", images)
                np.save(partial / f"{split}_labels.npy", labels.astype(np.int64))
    splits = sorted(p.name.removesuffix("_images.npy") for p in folder.glob("*_images.npy"))
    return {
        split: Split(
            np.load(folder / f"{split}_images.npy", mmap_mode="r"),
            np.load(folder / f"{split}_labels.npy"),
        )
        for split in splits
    }


class building:
    """Context manager: a temporary folder beside `target` that takes its name when the block ends without error."""

    def __init__(self, target: Path):
        self.target = target

    def __enter__(self) -> Path:
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self.partial = Path(tempfile.mkdtemp(prefix=f".{self.target.name}-", dir=self.target.parent))
        except OSError as error:
            raise UserError(f"Cannot write below {self.target.parent}: {error.strerror}. Free some space or choose another `outputs=`.") from error
        return self.partial

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            try:
                os.rename(self.partial, self.target)
            except OSError:  # another process was first; its content is the same
                if not self.target.exists():
                    raise
        shutil.rmtree(self.partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(f"Cannot write {self.target}: {error.strerror}. Free some space or choose another `outputs=`.") from error


def content_digest(files: Sequence[Path], root: Path, memo: Path) -> str:
    """SHA-256 over names and bytes of `files`.

    Reading 60,000 files takes seconds, so the digest is kept in `memo` under the files' names, sizes and times.
    """
    stats = [(str(f.relative_to(root)), s.st_size, s.st_mtime_ns) for f, s in ((f, f.stat()) for f in files)]
    known = memo / f"{digest([str(root.resolve()), stats])[:24]}.json"
    if known.exists():
        return json.loads(known.read_text())["digest"]
    value = digest([(name, digest(file.read_bytes().hex())) for (name, _, _), file in zip(stats, files, strict=True)])
    memo.mkdir(parents=True, exist_ok=True)
    temporary = known.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps({"digest": value, "root": str(root)}))
    os.replace(temporary, known)
    return value


def split_train(labels: np.ndarray, validation_share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and the validation part: stratified, the same for the same seed."""
    rng = np.random.default_rng(seed)
    validation = [
        rng.permutation(members)[: max(1, round(len(members) * validation_share))]
        for members in (np.flatnonzero(labels == label) for label in np.unique(labels))
    ]
    chosen = np.sort(np.concatenate(validation))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def channel_statistics(images: np.ndarray, indices: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of images[N,H,W,C] / 255 over the chosen indices (exact, by histogram)."""
    channels = images.shape[-1]
    counts = np.zeros((channels, 256))
    for start in range(0, len(indices), 4096):
        chunk = images[indices[start : start + 4096]]
        for channel in range(channels):
            counts[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    mean = (counts @ values) / counts.sum(1)
    variance = (counts @ values**2) / counts.sum(1) - mean**2
    # A constant channel would divide by zero; 1/255 is the smallest step a pixel can take.
    std = np.maximum(np.sqrt(np.maximum(variance, 0)), 1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())
