"""The base of engines, which execute artifacts. It imports nothing heavy, since measuring children load it first."""

from __future__ import annotations

import importlib
import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from qexp.artifact import Artifact, EngineSpec, Executable
from qexp.coded_file import code_weights, decoded
from qexp.files import file_digest, made_since, write_json
from qexp.keys import key, plain
from qexp.types import Unsupported

Forward = Callable[[np.ndarray], np.ndarray]  # x[B,C,H,W] float32 -> logits[B,K] float32


class Engine(ABC):
    """The base of all engines, and the guide to writing one.

    An engine is a class in a file of its own, which imports its libraries inside functions. Its constructor's arguments
    are plain values, kept as attributes of the same names, because measuring children make the engine again from them.

    Every engine sets these attributes, in the class or in the constructor, and has this method:

    name: The name of its yaml in conf/engine.
    spec: What it executes. Methods read from it what to make.
    file: The name of the file that it loads in an artifact's folder, in which `{batch}` and `{threads}` stand for the
        numbers of images and threads that the file is made for. With the graph's own name, such as `model.pt2`, it
        loads the graph itself.
    packages: The libraries that compute, by the names that install and import them. Each result tells their versions.
    load: Returns the network in a file as a function. The file is always plain, since `open` decodes a coded one.

    An engine that loads another format than the graph's has this method too:

    write: Translates the graph into a file. The graph is always plain, and `lower` codes the file where that is wanted.

    The others have defaults that are safe, if not always the best:

    modules: What `load` imports. By default these are `packages`. Set it if importing them does not import all of that.
    thread_safe: Whether several threads may call a loaded network at once. By default they take turns.
    carries_code: Whether loading or running a file of this format can run code that somebody put into it. By default it
        can, and qexp.load asks for trust. Set it to False for a format that holds nothing but a graph and weights.
    native: Whether its file is machine code of the machine that writes it, which no other device can run. By default it
        is not.
    runs_simulated: Whether it runs number formats that no kernel has. By default it does not. Only a reference should.
    check_machine: Raises Unsupported if it cannot run here. By default, it does so if a package is missing. Extend it
        for devices and compilers.
    check: Raises Unsupported for an artifact that it has no kernels for. By default, that is a simulated one. Extend it
        if there are others that `spec` cannot tell.
    import_libraries: Imports `modules` before anything is measured. Extend it if a library imports more at first use.
    standalone: Returns `load` as a function that needs nothing of qexp. By default there is none, and the engine cannot
        be deployed. Define it for qexp.deploy.
    operators: Profiles one call. By default there is no profile. Define it if the library has a profiler.
    device_memory_mb: Tells the peak of an accelerator's memory. By default there is none. Define it for such devices.
    """

    name: str
    spec: EngineSpec
    file: str
    packages: tuple[str, ...]
    thread_safe = False
    carries_code = True
    native = False
    runs_simulated = False

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that `load` imports."""
        return self.packages

    @property
    def target(self) -> str:
        """The dotted name of its class, as in conf/engine."""
        return f"{type(self).__module__}.{type(self).__qualname__}"

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's arguments by name.

        Raises:
            TypeError: An argument is no plain value.
        """
        arguments = inspect.signature(type(self)).parameters
        return {name: plain(getattr(self, name), f"{self.target}.{name}") for name in arguments}

    def check_machine(self) -> None:
        """Check that this engine runs here.

        Raises:
            Unsupported: Its library is not installed, or the device that it needs is missing.
        """
        missing = [package for package in self.packages if find_spec(package) is None]
        if missing:
            own = metadata.distributions(name="qexp")  # none in a clone that is not installed
            extras = {extra for found in own for extra in found.metadata.get_all("Provides-Extra") or ()}
            what = f"qexp[{self.name}]" if self.name in extras else " ".join(missing)
            raise Unsupported(f"{self.name} needs {' and '.join(missing)}, which is not installed: pip install {what}")

    def check(self, artifact: Artifact) -> None:
        """Check that this engine can execute an artifact.

        Raises:
            Unsupported: It has no kernels for the artifact's number formats.
        """
        if artifact.simulated and not self.runs_simulated:
            raise Unsupported(f"{self.name} has no kernels for {artifact.label}; engine=eager simulates it")

    def file_name(self, batch: int, threads: int) -> str:
        """The name of the file that it loads for calls of `batch` images on `threads` threads."""
        return self.file.format(batch=batch, threads=threads)

    def lower(self, artifact: Artifact, batch: int, threads: int, since: int = 0) -> Artifact:
        """Write this engine's file into the artifact's folder, and note it in `artifact.json`.

        Jobs that do so at the same time write the file once. A file that is there stays, unless the engine would now
        write a different one. This may import torch.

        Args:
            artifact: What to translate.
            batch: The number of images per call.
            threads: The number of threads that compute.
            since: A file that was written before this time, in nanoseconds, is written anew.

        Returns:
            The artifact with the new file and executable.

        Raises:
            Unsupported: This engine has no kernels for the artifact, or no file format of its own.
            UserError: The graph cannot be translated, or is damaged.
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
                    self._write_plain_or_coded(artifact, partial, batch, threads)
                    os.replace(partial, folder / name)
                finally:
                    partial.unlink(missing_ok=True)
                artifact = with_file(artifact, name)
            write_json(folder / "artifact.json", artifact.to_json())
            return artifact

    def _write_plain_or_coded(self, artifact: Artifact, file: Path, batch: int, threads: int) -> None:
        """Write this engine's file, coded if the artifact is coded and the format allows it."""
        graph = artifact.folder / artifact.graph
        if not artifact.coded:
            self.write(artifact, graph, file, batch, threads)
            return
        with decoded(graph) as plain:
            self.write(artifact, plain, file, batch, threads)
        code_weights(file)

    def write(self, artifact: Artifact, graph: Path, file: Path, batch: int, threads: int) -> None:
        """Translate a graph into the file that this engine loads, unless it loads the graph itself.

        Args:
            artifact: What is known of the graph.
            graph: The plain file of the graph.
            file: The file to write.
            batch: The number of images per call.
            threads: The number of threads that compute.

        Raises:
            Unsupported: This engine has no file format of its own, and the artifact holds no file that it loads.
            UserError: The graph cannot be translated.
        """
        raise Unsupported(f"{self.name} runs {self.file}, which {artifact.folder} does not hold")

    def import_libraries(self) -> None:
        """Import what `load` needs, so that its cost in time and memory can be told apart from the network's."""
        for module in self.modules:
            importlib.import_module(module)

    def open(self, file: Path, threads: int) -> Forward:
        """Load the network in a plain or coded file.

        Args:
            file: The file of an artifact that this engine loads.
            threads: The number of threads that compute.

        Returns:
            The network as a function of float32 images x[B,C,H,W] to float32 logits[B,K].

        Raises:
            UserError: A coded file is damaged.
        """
        with decoded(file) as plain:
            return self.load(plain, threads)

    @abstractmethod
    def load(self, file: Path, threads: int) -> Forward:
        """Load the network in a plain file. Others call `open`, which has the same arguments and result.

        The file may be gone once this has returned. What was mapped of it may stay mapped.
        """

    def standalone(self) -> partial[Forward] | None:
        """Give `load` as a function that runs where there are only NumPy and `packages`.

        qexp.deploy copies the source of that function, and of the functions that it calls by their global names. The
        only other global name that any of them may use is `np`.

        Returns:
            A function of (file, threads), with plain values bound by name to all other arguments, or None if there is
            no such function.
        """
        return None

    def operators(self, file: Path, threads: int, forward: Forward, x: np.ndarray) -> dict[str, Any] | None:
        """Profile one call by operator.

        Args:
            file: The file that was opened, plain or coded.
            threads: The number of threads that compute.
            forward: What `load` returned.
            x: Images x[B,C,H,W] float32.

        Returns:
            `text` (a table), `rows` (the same as data, see `profiles.OperatorTime`) and `allocated_mib` (None if the
            profiler does not tell it), or None if the engine has no profiler.
        """
        return None

    def device_memory_mb(self) -> float | None:
        """The most memory that an accelerator's allocator has held so far, in MB, or None on the CPU."""
        return None


def file_key(artifact: Artifact, executable: Executable) -> str:
    """The key of what an engine writes into its file.

    It is empty if the file is the graph itself, or if the code of the engine is not here.
    """
    if executable.file == artifact.graph:
        return ""
    engine = {"_target_": executable.target, **executable.options}
    try:
        return key("engine file", engine=engine, graph=artifact.files.get(artifact.graph), file=executable.file)
    except ModuleNotFoundError:
        return ""


def is_current(artifact: Artifact, name: str, since: int) -> bool:
    """Whether a file of the artifact was written at the time `since` or later, and is what its engines would write now.

    Engines that load a file of the same name write the same into it, no matter which comes first. The graph itself is
    always current.
    """
    if name not in artifact.files or name == artifact.graph:
        return name in artifact.files
    keys = [(e.key, file_key(artifact, e)) for e in artifact.executables if e.file == name]
    known = [had == now for had, now in keys if now]
    return bool(known) and all(known) and made_since(artifact.folder / name, since)


def with_file(artifact: Artifact, name: str) -> Artifact:
    """The artifact with a file that was just written, and that is what all engines that load it would write."""
    executables = (
        replace(e, key=file_key(artifact, e) or e.key) if e.file == name else e for e in artifact.executables
    )
    files = {**artifact.files, name: file_digest(artifact.folder / name)}
    return replace(artifact, files=files, executables=tuple(executables))


def in_batches_of(batch: int, forward: Forward) -> Forward:
    """Let a function that takes exactly `batch` images take any number, by filling up the last batch with zeros."""

    def any_number(x: np.ndarray) -> np.ndarray:
        if len(x) == batch:
            return forward(x)
        parts = []
        for start in range(0, len(x), batch):
            part = x[start : start + batch]
            filled = np.concatenate([part, np.zeros((batch - len(part), *x.shape[1:]), x.dtype)])
            parts.append(forward(filled)[: len(part)])
        return np.concatenate(parts)

    return any_number
