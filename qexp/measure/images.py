"""The test and validation images on which candidates are evaluated."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qexp.files import building
from qexp.types import Artifact


@dataclass(frozen=True)
class EvaluationSet:
    """Decoded images with labels, to compute logits of.

    Attributes:
        content: Says which images these are, wherever their folder is.
        images: File of images[N,H,W,C] uint8 (.npy).
        labels: File of labels[N] int64 (.npy).
        meaningful: Whether accuracy means something, which it does not for pretend images or random weights.
        chosen: File of the indices of the images that belong to the set (.json), or None if all do.
    """

    content: str
    images: Path
    labels: Path
    meaningful: bool
    chosen: Path | None = None

    @classmethod
    def validation(cls, artifact: Artifact, cache: Path) -> EvaluationSet | None:
        """The validation images of an artifact's data, on which no weight was trained.

        Returns:
            The images, or None if they are no longer in the folder `cache`.
        """
        folder = cache / "data" / artifact.data.cache_name
        indices = folder / artifact.data.validation_file
        if not indices.exists():
            return None
        content = f"{folder.name}/{indices.name}"
        return cls(content, folder / "train_images.npy", folder / "train_labels.npy", artifact.has_accuracy, indices)

    @property
    def classes(self) -> np.ndarray:
        """labels[N] of the images that belong to the set."""
        labels = np.load(self.labels)
        return labels[json.loads(self.chosen.read_text())] if self.chosen else labels

    @classmethod
    def of(cls, artifact: Artifact, cache: Path) -> EvaluationSet | None:
        """The test images of an artifact's data, or 64 images of its shape for pretend data, which is not stored.

        Returns:
            The images, or None if they are no longer in the folder `cache`.
        """
        folder = cache / ("pretend" if artifact.data.pretend else "data") / artifact.data.cache_name
        if artifact.data.pretend and not folder.exists():
            channels, height, width = artifact.data.input_shape
            with building(folder) as partial:
                images = np.random.default_rng(0).integers(256, size=(64, height, width, channels), dtype=np.uint8)
                np.save(partial / "test_images.npy", images)
                np.save(partial / "test_labels.npy", np.zeros(64, np.int64))
        if not folder.exists():
            return None
        content = f"{folder.name}/test"
        return cls(content, folder / "test_images.npy", folder / "test_labels.npy", artifact.has_accuracy)
