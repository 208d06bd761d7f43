"""What several tests of data do."""

from __future__ import annotations

import numpy as np

from qexp.data.base import ImageData


def every(data: ImageData, part: str) -> np.ndarray:
    """All images[N,H,W,C] of a part."""
    data.open()
    return data.pixels(part, np.arange(len(data.splits[part].labels)))
