"""The test and validation images on which candidates are evaluated."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qexp.artifact import Artifact
from qexp.data.decoded import write_part
from qexp.files import building


@dataclass(frozen=True)
class EvaluationSet:
    """Decoded images with labels, to compute logits of.

    Attributes:
        content: Says which images these are, wherever their folder is.
        folder: Folder of decoded images, as qexp.data.store describes it.
        part: Part of the data in that folder: `train` or `test`.
        chosen: File of the indices of the images that belong to the set (.json).
        meaningful: Whether accuracy means something, which it does not for pretend images or random weights.
    """

    content: str
    folder: Path
    part: str
    chosen: Path
    meaningful: bool

    @classmethod
    def validation(cls, artifact: Artifact, cache: Path, images: int | None = None) -> EvaluationSet | None:
        """The validation images of an artifact's data, on which no weight was trained.

        Args:
            artifact: The artifact.
            cache: Folder below which decoded images are kept.
            images: How many of them, or None for all.

        Returns:
            The images, or None if they are no longer there.
        """
        return cls._stored(artifact, cache, "train", artifact.data.evaluation_file("validation", images))

    @classmethod
    def test(cls, artifact: Artifact, cache: Path, images: int | None = None) -> EvaluationSet | None:
        """The test images of an artifact's data, or 64 images of its shape for pretend data, which is not stored.

        Arguments and the result are those of `validation`.
        """
        if artifact.data.pretend:
            return cls._pretend(artifact, cache)
        return cls._stored(artifact, cache, "test", artifact.data.evaluation_file("test", images))

    @classmethod
    def _stored(cls, artifact: Artifact, cache: Path, part: str, name: str) -> EvaluationSet | None:
        folder = cache / "data" / artifact.data.cache_name
        if not (folder / name).exists():
            return None
        return cls(f"{folder.name}/{name}", folder, part, folder / name, artifact.has_accuracy)

    @classmethod
    def _pretend(cls, artifact: Artifact, cache: Path) -> EvaluationSet:
        channels, height, width = artifact.data.input_shape
        folder = cache / "pretend" / artifact.data.cache_name
        if not folder.exists():
            with building(folder) as partial:
                images = np.random.default_rng(0).integers(256, size=(64, height, width, channels), dtype=np.uint8)
                write_part(partial, "test", images, np.zeros(64, np.int64))
                (partial / "test.json").write_text(json.dumps([*range(64)]))
        return cls(f"{folder.name}/test", folder, "test", folder / "test.json", False)

    @property
    def classes(self) -> np.ndarray:
        """labels[N] of the images that belong to the set."""
        return np.load(self.folder / f"{self.part}_labels.npy")[json.loads(self.chosen.read_text())]
