"""What an engine is: who executes an artifact's graph. Imports nothing heavy; a measuring child loads it first."""

from __future__ import annotations

import importlib
import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from qexp.files import file_digest, write_json
from qexp.types import Artifact, EngineSpec, Executable, Unsupported

Forward = Callable[[np.ndarray], np.ndarray]  # x[B,C,H,W] float32 -> logits[B,K] float32


class Engine(ABC):
    """name: as in conf/engine; wants: what it executes; packages: the libraries that compute; modules: what `load` imports of them;
    file: name of its own file in the artifact's folder, in which `{batch}` and `{threads}` stand for those it is made for;
    runs_simulated: whether it runs formats that no kernel has, as a reference; carries_code: whether loading or running a file of
    that format can run code that somebody put into it; thread_safe: whether a loaded network may be called by several threads at once.

    Constructor arguments are plain values, kept as attributes of the same names.
    """

    name: str
    spec: EngineSpec
    file: str
    packages: tuple[str, ...]
    modules: tuple[str, ...] = ()
    runs_simulated = False
    carries_code = True
    thread_safe = False

    @property
    def target(self) -> str:
        """Its class by dotted name, as conf/engine has it."""
        return f"{type(self).__module__}.{type(self).__qualname__}"

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def check_machine(self) -> None:
        """Errors: Unsupported where this engine does not run here: its library or the device it needs is missing."""
        missing = [package for package in self.packages if find_spec(package) is None]
        if missing:
            raise Unsupported(
                f"{self.name} needs {' and '.join(missing)}, which is not installed: uv pip install {missing[0]}"
            )

    def check(self, artifact: Artifact) -> None:
        """Errors: Unsupported where this engine has no kernels for the artifact's number formats."""
        if artifact.simulated and not self.runs_simulated:
            raise Unsupported(f"{self.name} has no kernels for {artifact.label}; engine=eager simulates it")

    def file_name(self, batch: int, threads: int) -> str:
        """Name of the file it loads for calls of `batch` images on `threads` threads."""
        return self.file.format(batch=batch, threads=threads)

    def lower(self, artifact: Artifact, batch: int, threads: int) -> Artifact:
        """Write this engine's file into the artifact's folder, if it is not there, once for all jobs of a sweep, and into
        `artifact.json` that this engine loads it. May import torch.

        Errors: Unsupported as of `check` and `write`, UserError where the graph cannot be translated.
        """
        from filelock import FileLock  # not in a measuring child

        self.check(artifact)
        name = self.file_name(batch, threads)

        def there(artifact: Artifact) -> bool:
            known = ((e.target, e.options, e.file) for e in artifact.executables)
            return name in artifact.files and (self.target, self.options, name) in known

        if there(artifact):
            return artifact
        folder = artifact.folder
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            artifact = Artifact.read(folder)
            if there(artifact):
                return artifact
            if name not in artifact.files:
                partial = folder / f".{os.getpid()}-{name}"
                try:
                    self.write(artifact, partial, batch, threads)
                    os.replace(partial, folder / name)
                finally:
                    partial.unlink(missing_ok=True)
                artifact = replace(artifact, files={**artifact.files, name: file_digest(folder / name)})
            executable = Executable(self.name, self.target, self.options, name, batch, threads)
            artifact = replace(artifact, executables=(*artifact.executables, executable))
            write_json(folder / "artifact.json", artifact.to_json())
            return artifact

    def write(self, artifact: Artifact, file: Path, batch: int, threads: int) -> None:
        """Translate the artifact's graph into `file`; engines that load the graph itself never come here."""
        raise Unsupported(f"{self.name} runs {self.file}, which {artifact.folder} does not hold")

    def import_libraries(self) -> None:
        """Import what `load` needs, so that its cost in time and memory is told apart from the network's."""
        for module in self.modules:
            importlib.import_module(module)

    @abstractmethod
    def load(self, file: Path, threads: int) -> Forward:
        """The network in `file`, ready to be called with float32 images on `threads` threads."""

    def standalone(self) -> tuple[tuple[Callable[..., Any], ...], dict[str, Any]] | None:
        """How to load its file where there is only NumPy and `packages`: functions that refer to nothing but these and each other, and
        the arguments with which the last is called after (file, threads). qexp.deploy copies their sources. None where it cannot."""
        return None

    def operators(self, run: Forward, x: np.ndarray) -> dict[str, Any] | None:
        """A profile of one call by operator: `text` (a table), `rows` (the same as data) and `allocated_mib`; None where the
        engine has no profiler."""
        return None

    def device_memory_mb(self) -> float | None:
        """Peak that the allocator of an accelerator held so far, in MB; None on the CPU."""
        return None


def in_batches_of(batch: int, run: Forward) -> Forward:
    """`run`, which takes exactly `batch` images, for any number: the last ones are filled up with zeros."""

    def any_number(x: np.ndarray) -> np.ndarray:
        if len(x) == batch:
            return run(x)
        parts = []
        for start in range(0, len(x), batch):
            part = x[start : start + batch]
            filled = np.concatenate([part, np.zeros((batch - len(part), *x.shape[1:]), x.dtype)])
            parts.append(run(filled)[: len(part)])
        return np.concatenate(parts)

    return any_number
