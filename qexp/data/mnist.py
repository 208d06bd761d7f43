"""MNIST (LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998)."""

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
from qexp.types import digest

FOLDER = Path("MNIST", "raw")  # where torchvision keeps the files, below its root


class MnistData(ImageData):
    """60,000 training and 10,000 test images of 28x28 grey pixels, read by torchvision.

    The four .gz files lie in `root`/MNIST/raw. Once the images are decoded, neither the files nor the internet is
    needed any more.
    """

    whole = True

    def __init__(self, root: str, **common: Any):
        self.root = Path(root).expanduser()
        super().__init__(**common)

    def source_digest(self) -> str:
        from torchvision.datasets import MNIST  # importing it takes seconds

        return digest(dict(MNIST.resources))  # name and MD5 of each file; others are never decoded

    def listing(self) -> Listing:
        names = tuple(str(digit) for digit in range(10))
        return Listing(names, {part: digits.targets.numpy() for part, digits in self._archive.items()})

    def decode(self, part: str, indices: np.ndarray) -> Iterable[np.ndarray]:
        return to_arrays(self._archive[part].data.numpy()[indices][..., None], self.how)

    @cached_property
    def _archive(self) -> dict[str, Any]:
        """Both parts, as torchvision reads them."""
        from torchvision.datasets import MNIST

        published = [
            Published(name, md5, tuple(mirror + name for mirror in MNIST.mirrors)) for name, md5 in MNIST.resources
        ]
        with tempfile.TemporaryDirectory() as folder:
            # No checksums are published for unpacked files, so those in data.root are not used.
            for file in fetch(self.root / FOLDER, published):
                extract(file, Path(folder) / FOLDER)
            return {part: MNIST(folder, train=part == "train") for part in PARTS}
