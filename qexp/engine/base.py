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
    """name: as in conf/engine; wants: what it executes; file: name of its own file in the artifact's folder."""

    name: str
    wants: Wants
    file: str
    runs_simulated = False

    def check(self, artifact: Artifact) -> None:
        """Errors: Unsupported where this engine has no kernels for the artifact's number formats."""
        if artifact.simulated and not self.runs_simulated:
            raise Unsupported(f"{self.name} has no kernels for {artifact.label}; engine=eager simulates it")

    def lower(self, artifact: Artifact) -> Artifact:
        """Write this engine's file into the artifact's folder, if it is not there. May import torch."""
        self.check(artifact)
        target = artifact.folder / self.file
        if self.file in artifact.files:
            return artifact
        partial = target.with_name(f".{os.getpid()}-{target.name}")
        try:
            self.write(artifact, partial)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
        known = replace(Artifact.read(artifact.folder), files={**Artifact.read(artifact.folder).files, self.file: file_digest(target)})
        write_json(artifact.folder / "artifact.json", known.to_json())
        return known

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
