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

from qexp.files import file_digest, made_since, write_json
from qexp.keys import key, plain
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
        """The constructor's arguments. Raises: TypeError where one is no plain value."""
        arguments = inspect.signature(type(self)).parameters
        return {name: plain(getattr(self, name), f"{self.target}.{name}") for name in arguments}

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

    def lower(self, artifact: Artifact, batch: int, threads: int, since: int = 0) -> Artifact:
        """Write this engine's file into the artifact's folder, and into `artifact.json` that this engine loads it.

        This is done once for all jobs of a sweep. A file that is there stays, unless the engine would write another one now.
        May import torch.

        Args:
            artifact: What is to be run.
            batch: Images per call.
            threads: Of the engine.
            since: A file that was written before this time, in nanoseconds, is written anew.

        Raises:
            Unsupported: This engine does not run the artifact, for a reason of `check` or `write`.
            UserError: The graph cannot be translated.
        """
        from filelock import FileLock  # not in a measuring child

        self.check(artifact)
        folder, name = artifact.folder, self.file_name(batch, threads)

        def there(artifact: Artifact) -> bool:
            known = ((e.target, e.options, e.file) for e in artifact.executables)
            return (self.target, self.options, name) in known and is_current(artifact, name, since)

        if there(artifact):
            return artifact
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            artifact = Artifact.read(folder)
            if there(artifact):
                return artifact
            mine = Executable(self.name, self.target, self.options, name, batch, threads)
            known = artifact.executables
            if not any((e.target, e.options, e.file) == (mine.target, mine.options, name) for e in known):
                artifact = replace(artifact, executables=(*known, replace(mine, key=file_key(artifact, mine))))
            if not is_current(replace(artifact, executables=known), name, since):
                partial = folder / f".{os.getpid()}-{name}"
                try:
                    self.write(artifact, partial, batch, threads)
                    os.replace(partial, folder / name)
                finally:
                    partial.unlink(missing_ok=True)
                artifact = with_file(artifact, name)
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


def file_key(artifact: Artifact, executable: Executable) -> str:
    """The key of what its engine writes into the file; empty for the graph itself, and where the engine is not here."""
    if executable.file == artifact.graph:
        return ""
    engine = {"_target_": executable.target, **executable.options}
    try:
        return key("engine file", engine=engine, graph=artifact.files.get(artifact.graph), file=executable.file)
    except ModuleNotFoundError:
        return ""


def is_current(artifact: Artifact, name: str, since: int) -> bool:
    """Whether a file of the artifact was written at the time `since` or later, and is what its engines would write now.

    Engines that load a file of the same name write the same into it, whichever comes first.
    """
    if name not in artifact.files or name == artifact.graph:
        return name in artifact.files
    keys = [(e.key, file_key(artifact, e)) for e in artifact.executables if e.file == name]
    known = [had == now for had, now in keys if now]
    return bool(known) and all(known) and made_since(artifact.folder / name, since)


def with_file(artifact: Artifact, name: str) -> Artifact:
    """The artifact with a file that was written just now, and is what all engines that load it would write."""
    executables = (
        replace(e, key=file_key(artifact, e) or e.key) if e.file == name else e for e in artifact.executables
    )
    files = {**artifact.files, name: file_digest(artifact.folder / name)}
    return replace(artifact, files=files, executables=tuple(executables))


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
