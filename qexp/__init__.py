"""Choose how to compress an image classifier, and use the result.

small = qexp.compress(network, "pictures", method="static", bits=8)
table = qexp.compare([network, small], "pictures", engines="auto", batch_size=1)
small.deploy("dist")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qexp.api.comparison import Comparison
    from qexp.api.compressed import CompressedNetwork
    from qexp.api.functions import compare, compress, sweep, train
    from qexp.api.search import Found, within
    from qexp.api.trained import TrainedNetwork
    from qexp.loading import Classifier, Prediction, load
    from qexp.types import UserError

__all__ = [
    "Classifier", "Comparison", "CompressedNetwork", "Found", "Prediction", "TrainedNetwork", "UserError",
    "compare", "compress", "load", "sweep", "train", "within",
]  # fmt: skip
PLACES = {
    "qexp.api.comparison": ("Comparison",),
    "qexp.api.compressed": ("CompressedNetwork",),
    "qexp.api.functions": ("compare", "compress", "sweep", "train"),
    "qexp.api.search": ("Found", "within"),
    "qexp.api.trained": ("TrainedNetwork",),
    "qexp.loading": ("Classifier", "Prediction", "load"),
    "qexp.types": ("UserError",),
}


def __getattr__(name: str) -> Any:
    """What is public is imported when it is asked for: measuring children import this package too."""
    for place, names in PLACES.items():
        if name in names:
            return getattr(importlib.import_module(place), name)
    raise AttributeError(f"module 'qexp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
