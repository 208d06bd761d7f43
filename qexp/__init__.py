"""Choose how to compress an image classifier, and use the result: `qexp.load(artifact).predict(images)`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qexp.loading import Classifier, Prediction, load

__all__ = ["Classifier", "Prediction", "load"]


def __getattr__(name: str) -> Any:
    """What is public is imported when it is asked for: measuring children import this package too."""
    if name not in __all__:
        raise AttributeError(f"module 'qexp' has no attribute {name!r}")
    return getattr(importlib.import_module("qexp.loading"), name)
