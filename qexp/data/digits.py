"""The handwritten digits that come with scikit-learn (Alpaydin and Kaynak, 1998): real images without a download."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable

import numpy as np

from qexp.data.base import ImageData
from qexp.data.pixels import to_arrays
from qexp.data.splitting import split_train
from qexp.data.store import Listing

TEST_SHARE, TEST_SEED = 0.2, 0  # fixed, so that no option moves an image between training and test


@functools.cache  # every job of a sweep needs them
def _load() -> tuple[np.ndarray, np.ndarray]:
    """images[1797,8,8,1] uint8 and labels[1797]."""
    from sklearn.datasets import load_digits  # importing it takes a second

    digits = load_digits()
    return np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None], digits.target


class DigitsData(ImageData):
    """1797 digits of 8x8 pixels. There is no published test part, so a fifth of each class is set aside for it."""

    trains_in_seconds = True
    whole = True

    def source_digest(self) -> str:
        images, labels = _load()
        return hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()

    def listing(self) -> Listing:
        names = tuple(str(digit) for digit in range(10))
        return Listing(names, {part: _load()[1][chosen] for part, chosen in self._parts().items()})

    def decode(self, part: str, indices: np.ndarray) -> Iterable[np.ndarray]:
        return to_arrays(_load()[0][self._parts()[part][indices]], self.how)

    def _parts(self) -> dict[str, np.ndarray]:
        return dict(zip(("train", "test"), split_train(_load()[1], TEST_SHARE, TEST_SEED), strict=True))
