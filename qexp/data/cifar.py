"""CIFAR-10 and CIFAR-100 (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qexp.data.base import ImageData
from qexp.data.download import Published, extract, fetch
from qexp.data.pixels import to_arrays
from qexp.data.store import PARTS, Listing
from qexp.types import UserError, digest


class CifarData(ImageData):
    """50,000 training and 10,000 test images of 32x32 pixels, read by torchvision from its archive, packed or unpacked.

    Once the images are decoded, neither the archive nor the internet is needed any more.

    Raises:
        UserError: The number of classes is neither 10 nor 100.
    """

    whole = True

    def __init__(self, classes: int, root: str, **common: Any):
        if classes not in (10, 100):
            raise UserError(f"data.classes is {classes}; there are CIFAR-10 and CIFAR-100, so give 10 or 100.")
        self.classes, self.root = classes, Path(root).expanduser()
        super().__init__(**common)

    def _published(self) -> Any:
        from torchvision.datasets import CIFAR10, CIFAR100  # importing it takes seconds

        return CIFAR10 if self.classes == 10 else CIFAR100

    def _unpacked(self) -> dict[str, str]:
        """The published MD5 of each unpacked file by name."""
        kind = self._published()
        return dict([*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])])

    def source_digest(self) -> str:
        return digest(self._unpacked())  # files with other checksums are never decoded

    def listing(self) -> Listing:
        names = tuple(self._archive["train"].classes)
        return Listing(names, {part: np.array(images.targets) for part, images in self._archive.items()})

    def decode(self, part: str, indices: np.ndarray) -> Iterable[np.ndarray]:
        return to_arrays(self._archive[part].data[indices], self.how)

    @cached_property
    def _archive(self) -> dict[str, Any]:
        """Both parts, as torchvision reads them."""
        from torchvision.datasets.utils import check_integrity

        kind = self._published()
        if all(check_integrity(self.root / kind.base_folder / name, md5) for name, md5 in self._unpacked().items()):
            return self._parts(self.root)
        (archive,) = fetch(self.root, [Published(kind.filename, kind.tgz_md5, (kind.url,))])
        with tempfile.TemporaryDirectory() as folder:  # because data.root may be shared and read-only
            extract(archive, Path(folder))
            return self._parts(Path(folder))

    def _parts(self, root: Path) -> dict[str, Any]:
        return {part: self._published()(root, train=part == "train") for part in PARTS}
