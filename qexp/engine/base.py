"""What an engine is: who executes an artifact's graph. Imports nothing heavy; a measuring child loads it first."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from qexp.files import file_digest, write_json
from qexp.types import Artifact, Unsupported, Wants

Run = Callable[[np.ndarray], np.ndarray]  # x[B,C,H,W] float32 -> logits[B,K] float32


class Engine(ABC):
    """name: as in conf/engine; wants: what it executes; file: name of its own file in the artifact's folder; packages: the
    libraries that compute; runs_simulated: whether it runs formats that no kernel has, as a reference.

    Constructor arguments are plain values, kept as attributes of the same names.
    """

    name: str
    wants: Wants
    file: str
    packages: tuple[str, ...]
    runs_simulated = False

    def check(self, artifact: Artifact) -> None:
        """Errors: Unsupported where this engine has no kernels for the artifact's number formats."""
        if artifact.simulated and not self.runs_simulated:
            raise Unsupported(f"{self.name} has no kernels for {artifact.label}; engine=eager simulates it")

    def lower(self, artifact: Artifact) -> Artifact:
        """Write this engine's file into the artifact's folder, if it is not there, once for all jobs of a sweep. May import torch.

        Errors: Unsupported as of `check` and `write`, UserError where the graph cannot be translated.
        """
        from filelock import FileLock  # not in a measuring child

        self.check(artifact)
        if self.file in artifact.files:
            return artifact
        folder = artifact.folder
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            artifact = Artifact.read(folder)
            if self.file in artifact.files:
                return artifact
            partial = folder / f".{os.getpid()}-{self.file}"
            try:
                self.write(artifact, partial)
                os.replace(partial, folder / self.file)
            finally:
                partial.unlink(missing_ok=True)
            artifact = replace(artifact, files={**artifact.files, self.file: file_digest(folder / self.file)})
            write_json(folder / "artifact.json", artifact.to_json())
            return artifact

    def write(self, artifact: Artifact, file: Path) -> None:
        """Translate the artifact's graph into `file`; engines that load the graph itself never come here."""
        raise Unsupported(f"{self.name} runs {self.file}, which {artifact.folder} does not hold")

    @abstractmethod
    def import_libraries(self) -> None:
        """Import what `load` needs, so that its cost in time and memory is told apart from the network's."""

    @abstractmethod
    def load(self, file: Path, threads: int) -> Run:
        """The network in `file`, ready to be called with float32 images on `threads` threads."""

    def operators(self, run: Run, x: np.ndarray) -> dict[str, Any] | None:
        """A profile of one call by operator: `text` (a table) and `allocated_mib`; None where the engine has no profiler."""
        return None
