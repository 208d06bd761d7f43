"""A network that qexp.train has trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import nn


@dataclass(frozen=True)
class TrainedNetwork:
    """A network that `qexp.train` has trained. `qexp.compress` and `qexp.compare` take it in place of a network.

    Attributes:
        name: What tables and records call it.
        network: The network with the weights of its best epoch, in eval mode. It takes x[B,C,H,W] float32.
        metrics: Accuracies as fractions: `val_top1` of the validation images, by which the epoch was chosen, and
            `test_top1` and `test_top5` of the test images.
        folder: The baseline on disk: weights (safetensors) and a manifest of how they came about.
        built_by: Name of the file in conf/model that builds the network, or empty if the program made it.

    Example:
        >>> trained = qexp.train(network, "pictures", epochs=5)
        >>> trained.metrics["test_top1"]
        0.93
    """

    name: str
    network: nn.Module = field(repr=False)
    metrics: dict[str, float]
    folder: Path
    built_by: str = ""
