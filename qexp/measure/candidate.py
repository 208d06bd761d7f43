"""A candidate: an artifact on an engine, in a child process that can be timed and asked for logits."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from qexp.artifact import Artifact
from qexp.engine.base import Engine
from qexp.files import file_digest, made_since
from qexp.keys import key, plain
from qexp.launch import Child, ChildFailed
from qexp.measure.children import Limits
from qexp.measure.device import HERE, Device
from qexp.measure.images import EvaluationSet
from qexp.progress import counted


class Candidate:
    """An artifact on an engine, loaded in a child process when that is first needed.

    Args:
        artifact: Artifact to run.
        engine: Engine that runs it.
        batch: Images per call.
        threads: Threads of the engine.
        limits: Limits of each question to the child.
        persistent: Whether to use a child that outlives the candidate and is shared with others on the same engine,
            instead of a fresh one.
        since: Logits that were stored before this time, in nanoseconds, are computed anew.
        device: The machine that runs it.
    """

    def __init__(
        self, artifact: Artifact, engine: Engine, batch: int, threads: int, limits: Limits, persistent: bool = False,
        since: int = 0, device: Device = HERE,
    ):  # fmt: skip
        self.artifact, self.engine, self.batch, self.threads, self.limits = artifact, engine, batch, threads, limits
        self.persistent, self.since, self.device = persistent, since, device
        self._child: Child | None = None
        self._imported = False
        self._started: dict[str, Any] = {}

    def beside(self, artifact: Artifact) -> Candidate:
        """Another artifact on the same engine. If the child is persistent, both are loaded in it in turn."""
        return Candidate(
            artifact, self.engine, self.batch, self.threads, self.limits, self.persistent, self.since, self.device
        )

    def on_this_machine(self) -> Candidate:
        """The same artifact on the same engine here.

        Raises:
            Unsupported: The engine does not run here.
        """
        HERE.check(self.engine)
        return Candidate(self.artifact, self.engine, self.batch, HERE.physical_cores(), self.limits, since=self.since)

    def launch(self) -> Child:
        """Start the child, unless it runs already.

        The child imports its engine, which takes seconds, and may do so while other children import theirs.
        """
        if self._child is None:
            self._child = self.device.child(self.engine, self.threads, self.limits, self.persistent)
        return self._child

    def ready_child(self) -> Child:
        """Wait until the child has imported its engine, and return it. It is launched if there is none."""
        child = self.launch()
        if not self._imported:
            child.ask("ready")
            self._imported = True
        return child

    def start(self) -> dict[str, Any]:
        """Load the network in the child, unless that holds it already.

        Returns:
            `load_ms`, `first_call_ms`, `memory_mb` and `device_memory_mb`. The last two are None if the system cannot
            tell them or there is no such device.
        """
        child = self.ready_child()
        if child.holds is not self:
            shape = [self.batch, *self.artifact.data.input_shape]
            child.holds = None
            self._started = child.ask("start", file=self.device.file(self.file), threads=self.threads, shape=shape)
            child.holds = self
        return self._started

    @property
    def process(self) -> int:
        """Id of the child, which is launched if there is none, on its machine."""
        return self.ready_child().pid

    @property
    def file(self) -> Path:
        return self.artifact.folder / self.engine.file_name(self.batch, self.threads)

    @property
    def identity(self) -> dict[str, Any]:
        """What distinguishes this candidate: the artifact, the file that is loaded, and the engine with its options."""
        return {
            "artifact": self.artifact.key,
            "file": self.artifact.files.get(self.file.name) or file_digest(self.file),
            "engine": plain(self.engine, "engine"),
        }

    def window(self, calls: int, seconds: float) -> list[float]:
        """Milliseconds of at least `calls` single calls in steady state, which take at least `seconds` in all."""
        self.start()
        return self.ready_child().ask("window", calls=calls, seconds=seconds)["samples"]

    def logits(
        self, tests: EvaluationSet, batch: int, cache: Path, count: int | None = None
    ) -> tuple[np.ndarray, float]:
        """Compute the logits of images, or read them from the disk if they were computed before.

        Args:
            tests: The images.
            batch: Images per call.
            cache: Folder below which logits are stored.
            count: Number of images to take, spread evenly over `tests`, or None for all.

        Returns:
            logits[N,K] float32, and the seconds that computing them took.
        """
        file = cache / "logits" / f"{self.logits_key(tests, batch, count)[:24]}.npz"
        if not made_since(file, self.since):
            self.start()
            file.parent.mkdir(parents=True, exist_ok=True)
            with counted(f"  Images through {self.artifact.label} on {self.engine.name}") as told:
                logits, seconds = self.device.logits(self.ready_child(), tests, self.artifact.data, batch, count, told)
            with tempfile.TemporaryDirectory(dir=file.parent) as folder:
                np.savez(Path(folder) / "whole.npz", logits=logits, seconds=seconds)
                (Path(folder) / "whole.npz").rename(file)
        with np.load(file) as stored:
            return stored["logits"], float(stored["seconds"])

    def logits_key(self, tests: EvaluationSet, batch: int, count: int | None) -> str:
        """Key of everything that decides what `logits` gives for the same arguments."""
        how, file = self.artifact.data.preprocessing, self.identity["file"]
        where = self.device.place() | self.device.decides
        return key(
            "logits", code=["qexp.measure.candidate"], engine=self.engine, file=file, images=tests.content,
            preprocessing=how, batch=batch, threads=self.threads, count=count, place=where,
        )  # fmt: skip

    def close(self) -> None:
        """End the child, or let a persistent one free the network's memory.

        The next question starts the child, or loads the network, again.
        """
        child, self._child, self._imported = self._child, None, False
        if child is None:
            return
        if not self.persistent:
            child.stop()
        elif child.alive and child.holds is self:
            child.holds = None
            with contextlib.suppress(ChildFailed):
                child.ask("unload")
