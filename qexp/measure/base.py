"""What a measurement works with: one artifact on one engine, in a child process, beside the fp32 baseline in another."""

from __future__ import annotations

import contextlib
import inspect
import os
import statistics
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from filelock import FileLock

from qexp.engine.base import Engine
from qexp.launch import Child
from qexp.types import Artifact, Measurement, digest, versions

# One place for all users of a machine, whatever TMPDIR says.
HOST_LOCK = Path("/tmp" if os.name == "posix" else tempfile.gettempdir()) / "qexp-measure.lock"


@dataclass(frozen=True)
class TestSet:
    """Paths of images[N,H,W,C] uint8 and labels[N] int64 as .npy files."""

    images: Path
    labels: Path

    @classmethod
    def of(cls, artifact: Artifact, cache: Path) -> TestSet | None:
        """The test part of the data an artifact was made with, if its decoded images are still in `cache` and mean something."""
        folder = cache / "data" / artifact.data.cache_name
        return cls(folder / "test_images.npy", folder / "test_labels.npy") if artifact.has_accuracy and folder.exists() else None


@dataclass(frozen=True)
class Limits:
    """Of one question to a measuring child: seconds, and resident memory in MB (None: no limit)."""

    timeout_s: float
    memory_mb: float | None


class Subject:
    """An artifact on an engine, loaded in a child process when first asked for. batch: images per call."""

    def __init__(self, artifact: Artifact, engine: Engine, batch: int, threads: int, limits: Limits):
        self.artifact, self.engine, self.batch, self.threads, self.limits = artifact, engine, batch, threads, limits

    @cached_property
    def importing(self) -> Child:
        """A child that has begun to import its engine, which takes seconds and may overlap with others' imports."""
        child = Child("qexp.measure.child", self.threads, self.limits.timeout_s, self.limits.memory_mb)
        engine = type(self.engine)
        child.tell("imports", target=f"{engine.__module__}.{engine.__qualname__}", options=engine_options(self.engine))
        return child

    @cached_property
    def child(self) -> Child:
        """The child when it has imported its engine."""
        self.importing.answer("imports")
        return self.importing

    @cached_property
    def start(self) -> dict[str, Any]:
        """load_ms, first_call_ms and memory_mb (None where the system cannot tell)."""
        shape = [self.batch, *self.artifact.data.input_shape]
        return self.child.ask("start", file=str(self.file), threads=self.threads, shape=shape)

    @property
    def file(self) -> Path:
        return self.artifact.folder / self.engine.file

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the logits, but for the images: the very file, the engine with its options, and its libraries."""
        engine = {"engine": self.engine.name, "options": engine_options(self.engine), "versions": versions(*self.engine.packages)}
        return {"artifact": self.artifact.key, "file": self.artifact.files.get(self.engine.file), **engine}

    def window(self, calls: int, seconds: float) -> list[float]:
        """Milliseconds of single calls in steady state."""
        self.start  # noqa: B018  (loads the network)
        return self.child.ask("window", calls=calls, seconds=seconds)["samples"]

    def logits(self, tests: TestSet, batch: int, cache: Path) -> tuple[np.ndarray, float]:
        """Logits[N,K] of the whole test set and the seconds they took; kept on disk, since they depend on nothing else."""
        file = cache / "logits" / f"{digest([self.identity, str(tests.images), self.threads])[:24]}.npz"
        if not file.exists():
            self.start  # noqa: B018
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=file.parent) as folder:
                out = Path(folder) / "logits.npy"
                data = self.artifact.data
                answer = self.child.ask("predict", images=str(tests.images), mean=data.mean, std=data.std, batch=batch, out=str(out))
                np.savez(Path(folder) / "whole.npz", logits=np.load(out), seconds=answer["seconds"])
                (Path(folder) / "whole.npz").rename(file)
        with np.load(file) as stored:
            return stored["logits"], float(stored["seconds"])

    def close(self) -> None:
        if "importing" in self.__dict__:
            self.importing.stop()


@dataclass
class Bench:
    """subject: what is measured; baseline: the fp32 artifact on eager torch at the same batch size, None if there is none;
    tests: None where accuracy means nothing; texts: tables for people, by file name."""

    subject: Subject
    baseline: Subject | None
    tests: TestSet | None
    cache: Path
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def is_baseline(self) -> bool:
        return self.baseline is not None and self.baseline.identity == self.subject.identity

    def close(self) -> None:
        self.subject.close()
        if self.baseline:
            self.baseline.close()


class Turns(Protocol):
    """What can time several subjects in turns: milliseconds of single calls, by subject and window."""

    def take_turns(self, subjects: list[Subject]) -> list[list[list[float]]]: ...


class Measure(ABC):
    @abstractmethod
    def measure(self, bench: Bench) -> list[Measurement]:
        """Errors: ChildFailed where the measuring child did not survive."""


def engine_options(engine: Engine) -> dict[str, Any]:
    """The engine's constructor arguments, which it keeps as attributes of the same names; JSON takes them to the child."""
    return {name: getattr(engine, name) for name in inspect.signature(type(engine)).parameters}


@contextlib.contextmanager
def alone_on_host() -> Iterator[None]:
    """Hold this machine's measuring lock: two measurements at once would disturb each other.

    The system frees it when its holder dies, and every user may take it.
    """
    with FileLock(HOST_LOCK, mode=0o666):
        yield


def run_measures(measures: dict[str, Measure], bench: Bench) -> list[Measurement]:
    """All measurements of one run, one after the other, alone on this machine."""
    with alone_on_host(), contextlib.closing(bench):
        ready([bench.subject, bench.baseline] if bench.baseline else [bench.subject])
        return [measurement for measure in measures.values() for measurement in measure.measure(bench)]


def ready(subjects: list[Subject]) -> None:
    """Import all engines side by side, and wait for the last: nothing is loaded or timed while another still imports."""
    for subject in subjects:
        subject.importing  # noqa: B018
    for subject in subjects:
        subject.child  # noqa: B018


def fastest(subjects: list[Subject], trial: Turns | None) -> tuple[Subject, list[Measurement]]:
    """The subject with the least median latency, and every candidate's median, timed in turns; one alone is not timed.

    The winner keeps its child: it is fresh, and what was measured at its start holds.
    """
    if len(subjects) == 1 or trial is None:
        return subjects[0], []
    with alone_on_host():
        try:
            ready(subjects)
            windows = trial.take_turns(subjects)
        except BaseException:
            for subject in subjects:
                subject.close()
            raise
    medians = [statistics.median(statistics.median(window) for window in taken) for taken in windows]
    found = [Measurement(f"candidate_{s.engine.name}_ms", ms, "ms") for s, ms in zip(subjects, medians, strict=True)]
    winner = subjects[medians.index(min(medians))]
    for subject in subjects:
        if subject is not winner:
            subject.close()
    return winner, found
