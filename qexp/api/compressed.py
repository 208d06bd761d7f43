"""A compressed network as qexp.compress gives it."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from qexp.api.nodes import Network
from qexp.api.options import Words
from qexp.artifact import Artifact
from qexp.data.parts import Parts
from qexp.deploy.__main__ import ready, rules
from qexp.deploy.write import deploy
from qexp.loading import Classifier, Prediction, engine_of, measured
from qexp.types import Unsupported, UserError, nearest


@dataclass(frozen=True, repr=False)
class CompressedNetwork:
    """A compressed network: one artifact for all engines that read the same graph, and others for other engines.

    Attributes:
        network: The network that was compressed.
        artifacts: Folders of artifacts, by the engines that they were made for.
        notes: Why an engine has none, by `candidate NAME`.
        method: Overrides that say how it was compressed.
        shared: Overrides of everything else, as of the images.
        overrides: Overrides that were given as on the command line.
        images: The images that it was calibrated with, or None if the config makes them.

    Example:
        >>> small = qexp.compress(network, "pictures", method="static", bits=8)
        >>> small.predict("photo.jpg").label
        'cat'
    """

    network: Network
    artifacts: Mapping[str, Path]
    notes: Mapping[str, str]
    method: Words
    shared: Words
    overrides: tuple[str, ...] = ()
    images: Parts | None = field(default=None)

    @property
    def artifact(self) -> Artifact:
        """The artifact of the engine that was the fastest when it was measured, or of the first one."""
        return Artifact.read(self.artifacts[self._engine(None)])

    def predict(self, images: Any) -> Prediction | list[Prediction]:
        """Classify images, prepared like those that the network was calibrated with.

        Args:
            images: One image, a list or tuple of images, or an array [N,H,W,C]. An image is the path of a file, its
                bytes, a PIL image, or an array [H,W] or [H,W,C] of uint8 or of floats in 0..1. Where a dataset gave
                tensors, it is such a tensor x[C,H,W], and several are x[N,C,H,W].

        Returns:
            A prediction for one image, or a list of predictions for several.

        Raises:
            UserError: An image is of another type, or its file cannot be read.

        Example:
            >>> small.predict(["one.jpg", "two.jpg"])[1].probability
            0.97
        """
        return self._classifier.predict(images)

    @cached_property
    def _classifier(self) -> Classifier:
        return self.load()

    def load(self, engine: str | None = None, threads: int | None = None) -> Classifier:
        """Load the network on an engine.

        Args:
            engine: Name of the engine, such as `onnxruntime`. None takes the one that was the fastest when it was
                measured, or the first for which there is an artifact.
            threads: Threads of each call. None takes one for each physical core.

        Raises:
            UserError: There is no artifact for the engine, or it does not run here.

        Example:
            >>> small.load("onnxruntime", threads=1).logits(image).shape  # logits[N,K] float32
            (1, 10)
        """
        artifact, made, executable = self._ready(engine, None, threads)
        return Classifier(artifact, executable, engine_of(executable, trust=True), threads or executable.threads)

    def deploy(
        self, to: str | os.PathLike[str], engine: str | None = None, *, batch_size: int | None = None,
        threads: int | None = None,
    ) -> Path:  # fmt: skip
        """Write a folder that a device needs to run the network: one model file, and scripts that need only NumPy.

        Args:
            to: Folder to write. It may hold an older deployment.
            engine: Name of the engine, as `load` takes it.
            batch_size: Images of a call. None takes what was measured, or 1.
            threads: Threads of a call. None takes what was measured, or one for each physical core.

        Returns:
            The folder.

        Raises:
            UserError: The folder holds something else, or the images are prepared by what a device does not have.

        Example:
            >>> small.deploy("dist", engine="onnxruntime")
            PosixPath('dist')
        """
        artifact, made, executable = self._ready(engine, batch_size, threads)
        deploy(artifact, made, executable, rules(), Path(to))
        return Path(to)

    def _ready(self, engine: str | None, batch_size: int | None, threads: int | None) -> Any:
        """The artifact, the engine and its file, which is made if there is none."""
        name = self._engine(engine)
        try:
            return ready(Artifact.read(self.artifacts[name]), name, batch_size, threads)
        except Unsupported as error:
            raise UserError(str(error)) from None

    def _engine(self, engine: str | None) -> str:
        """The engine that is meant.

        Raises:
            UserError: There is no artifact for it.
        """
        if engine is not None and engine not in self.artifacts:
            why = self.notes.get(f"candidate {engine}", "")
            raise UserError(
                f"{self.label} was not made for engine={engine}{f': {why}' if why else ''}. "
                f"{nearest(engine, self.artifacts)}"
            )
        if engine is not None:
            return engine
        times = {
            executable.engine: rank
            for folder in dict.fromkeys(self.artifacts.values())
            for rank, executable in measured(Artifact.read(folder))
            if self.artifacts.get(executable.engine) == folder
        }
        return min(times, key=lambda name: times[name]) if times else next(iter(self.artifacts))

    @property
    def label(self) -> str:
        """What tables call it, such as `static int8`."""
        return Artifact.read(next(iter(self.artifacts.values()))).label

    @property
    def size_mb(self) -> float:
        """Size of the network in MB (10⁶ bytes) if every tensor took exactly its bits."""
        return self.artifact.packed_bytes / 1e6

    def __repr__(self) -> str:
        return f"<{self.network.name}, {self.label}, {self.size_mb:.3g} MB, for {', '.join(self.artifacts)}>"

    def _repr_html_(self) -> str:
        notes = "".join(f"<br>{html.escape(f'{name} {why}')}" for name, why in self.notes.items())
        folders = ", ".join(dict.fromkeys(str(folder) for folder in self.artifacts.values()))
        return (
            f"<b>{html.escape(self.network.name)}</b>, {html.escape(self.label)}, {self.size_mb:.3g} MB, for "
            f"{html.escape(', '.join(self.artifacts))}<br><small>{html.escape(folders)}{notes}</small>"
        )
