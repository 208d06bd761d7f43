"""What a measurement works with: one artifact on one engine, in a child process, beside the fp32 baseline in another."""

from __future__ import annotations

import contextlib
import json
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
from qexp.files import building
from qexp.launch import Child, ChildFailed
from qexp.types import Artifact, Measurement, digest, versions

# One place for all users of a machine, whatever TMPDIR says.
HOST_LOCK = Path("/tmp" if os.name == "posix" else tempfile.gettempdir()) / "qexp-measure.lock"


@dataclass(frozen=True)
class TestSet:
    """Paths of images[N,H,W,C] uint8 and labels[N] int64 as .npy files; meaningful: False for pretend images or random weights;
    chosen: file of the indices that belong to it, None for all."""

    images: Path
    labels: Path
    meaningful: bool
    chosen: Path | None = None

    @classmethod
    def validation(cls, artifact: Artifact, cache: Path) -> TestSet | None:
        """The validation part of the data an artifact was made with, which no weight was trained on, if it is still in `cache`."""
        folder = cache / "data" / artifact.data.cache_name
        indices = folder / artifact.data.validation_file
        return cls(folder / "train_images.npy", folder / "train_labels.npy", artifact.has_accuracy, indices) if indices.exists() else None

    @property
    def classes(self) -> np.ndarray:
        """labels[N] of those that belong to it."""
        labels = np.load(self.labels)
        return labels[json.loads(self.chosen.read_text())] if self.chosen else labels

    @classmethod
    def of(cls, artifact: Artifact, cache: Path) -> TestSet | None:
        """The test part of the data an artifact was made with, if its decoded images are still in `cache`; for pretend data, which
        is kept nowhere, 64 images of its shape."""
        folder = cache / ("pretend" if artifact.data.pretend else "data") / artifact.data.cache_name
        if artifact.data.pretend and not folder.exists():
            channels, height, width = artifact.data.input_shape
            with building(folder) as partial:
                images = np.random.default_rng(0).integers(256, size=(64, height, width, channels), dtype=np.uint8)
                np.save(partial / "test_images.npy", images)
                np.save(partial / "test_labels.npy", np.zeros(64, np.int64))
        return cls(folder / "test_images.npy", folder / "test_labels.npy", artifact.has_accuracy) if folder.exists() else None


@dataclass(frozen=True)
class Limits:
    """Of one question to a measuring child: seconds, and resident memory in MB (None: no limit)."""

    timeout_s: float
    memory_mb: float | None


class Subject:
    """An artifact on an engine, loaded in a child process when first asked for. batch: images per call; standing: whether its
    child is that of the last such subject on the same engine, if it lives, instead of a fresh one."""

    def __init__(self, artifact: Artifact, engine: Engine, batch: int, threads: int, limits: Limits, standing: bool = False):
        self.artifact, self.engine, self.batch, self.threads, self.limits = artifact, engine, batch, threads, limits
        self.standing = standing

    def beside(self, artifact: Artifact) -> Subject:
        """Another artifact on the same engine; in a standing child the two take turns."""
        return Subject(artifact, self.engine, self.batch, self.threads, self.limits, self.standing)

    @cached_property
    def importing(self) -> Child:
        """A child that has begun to import its engine, which takes seconds and may overlap with others' imports."""
        return (STANDING.get if self.standing else new_child)(self.engine, self.threads, self.limits)

    @cached_property
    def child(self) -> Child:
        """The child when it has imported its engine."""
        self.importing.ask("ready")
        return self.importing

    @property
    def start(self) -> dict[str, Any]:
        """load_ms, first_call_ms, memory_mb and device_memory_mb (None where there is none, or the system cannot tell)."""
        if self.child.holds is not self:
            shape = [self.batch, *self.artifact.data.input_shape]
            self.child.holds = None
            self.started = self.child.ask("start", file=str(self.file), threads=self.threads, shape=shape)
            self.child.holds = self
        return self.started

    @property
    def file(self) -> Path:
        return self.artifact.folder / self.engine.file_name(self.batch, self.threads)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the logits, but for the images: the very file, the engine with its options, and its libraries."""
        return {"artifact": self.artifact.key, "file": self.artifact.files.get(self.file.name), **engine_identity(self.engine)}

    def window(self, calls: int, seconds: float) -> list[float]:
        """Milliseconds of single calls in steady state."""
        self.start  # noqa: B018  (loads the network)
        return self.child.ask("window", calls=calls, seconds=seconds)["samples"]

    def logits(self, tests: TestSet, batch: int, cache: Path, count: int | None = None) -> tuple[np.ndarray, float]:
        """Logits[N,K] of the test set, or of `count` images spread evenly over it, and the seconds they took; kept on disk,
        since they depend on nothing else."""
        file = cache / "logits" / f"{digest([self.identity, str(tests.chosen or tests.images), self.threads, count])[:24]}.npz"
        if not file.exists():
            self.start  # noqa: B018
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=file.parent) as folder:
                out = Path(folder) / "logits.npy"
                chosen = str(tests.chosen) if tests.chosen else None
                asked = {"images": str(tests.images), "chosen": chosen, "count": count, "batch": batch, "out": str(out)}
                answer = self.child.ask("predict", mean=self.artifact.data.mean, std=self.artifact.data.std, **asked)
                np.savez(Path(folder) / "whole.npz", logits=np.load(out), seconds=answer["seconds"])
                (Path(folder) / "whole.npz").rename(file)
        with np.load(file) as stored:
            return stored["logits"], float(stored["seconds"])

    def close(self) -> None:
        """End the child, or have a standing one give the network's memory back; the next question starts or loads anew."""
        child: Child | None = self.__dict__.pop("importing", None)
        self.__dict__.pop("child", None)
        if child is None:
            return
        if not self.standing:
            child.stop()
        elif child.alive and child.holds is self:
            child.holds = None
            with contextlib.suppress(ChildFailed):
                child.ask("unload")


def new_child(engine: Engine, threads: int, limits: Limits) -> Child:
    target = {"target": engine.target, "options": engine.options}
    return Child("qexp.measure.child", target, threads, limits.timeout_s, limits.memory_mb)


class StandingChildren:
    """Children that this process keeps for the runs to come, at most `most` of them; they end with this process at the latest."""

    def __init__(self, most: int):
        self.most = most
        self.kept: dict[str, Child] = {}  # the one last asked for at the end

    def get(self, engine: Engine, threads: int, limits: Limits) -> Child:
        """One with this engine, if it lives, or a new one in the place of the one not asked for the longest."""
        key = repr((engine.target, engine.options, threads, limits, os.getcwd()))  # in which it finds what it is told to load
        child = self.kept.pop(key, None)
        self.kept[key] = child if child and child.alive else new_child(engine, threads, limits)
        while len(self.kept) > self.most:
            self.kept.pop(next(iter(self.kept))).stop()
        return self.kept[key]

    def stop(self) -> None:
        while self.kept:
            self.kept.popitem()[1].stop()


STANDING = StandingChildren(most=2)  # the baseline's and the rival's


@dataclass
class Bench:
    """subject: what is measured; baseline: the fp32 artifact on eager torch at the same batch size, None if there is none;
    rival: the same on the fastest fp32 engine; tests: None if there are no images; texts: tables for people, by file name;
    notes: why a number is missing, or what was left out, by its name."""

    subject: Subject
    baseline: Subject | None
    tests: TestSet | None
    cache: Path
    rival: Subject | None = None
    texts: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def validation(self) -> TestSet | None:
        """The images to choose by, as `tests` are those to judge by."""
        return TestSet.validation(self.subject.artifact, self.cache)

    @property
    def subjects(self) -> list[Subject]:
        """All that are timed in turns: the subject first, none twice."""
        different: dict[str, Subject] = {}
        for subject in (self.subject, self.baseline, self.rival):
            if subject:
                different.setdefault(json.dumps(subject.identity), subject)
        return list(different.values())

    def close(self) -> None:
        for subject in (self.subject, self.baseline, self.rival):
            if subject:
                subject.close()


class Disagrees(Exception):
    """An engine computes something else than the graph it was given; the message says by how much."""


class Turns(Protocol):
    """What can time several subjects in turns: milliseconds of single calls, by subject and window."""

    def take_turns(self, subjects: list[Subject]) -> list[list[list[float]]]: ...


class Measure(ABC):
    @abstractmethod
    def measure(self, bench: Bench) -> list[Measurement]:
        """Errors: ChildFailed where the measuring child did not survive."""


def engine_identity(engine: Engine) -> dict[str, Any]:
    """What decides its results, and what these cost."""
    return {"engine": engine.name, "options": engine.options, "versions": versions(*engine.packages)}


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
        ready(bench.subjects)
        return [measurement for measure in measures.values() for measurement in measure.measure(bench)]


def ready(subjects: list[Subject]) -> None:
    """Import all engines side by side, and wait for the last: nothing is loaded or timed while another still imports."""
    for subject in subjects:
        subject.importing  # noqa: B018
    for subject in subjects:
        subject.child  # noqa: B018


def ranking(subjects: dict[str, Subject], trial: Turns, notes: dict[str, str]) -> dict[str, float]:
    """Median milliseconds by name, the fastest first, timed in turns; the fastest keeps its child, which is fresh.

    One that does not survive its first calls is left out, and `notes` tells why. Errors: ChildFailed where none survives.
    """
    with alone_on_host():
        try:
            alive = _survivors(subjects, notes)
            windows = trial.take_turns(list(alive.values()))
        except BaseException:
            for subject in subjects.values():
                subject.close()
            raise
    medians = {name: statistics.median(statistics.median(w) for w in taken) for name, taken in zip(alive, windows, strict=True)}
    ranked = dict(sorted(medians.items(), key=lambda item: item[1]))
    for name in list(ranked)[1:]:
        subjects[name].close()
    return ranked


def _survivors(subjects: dict[str, Subject], notes: dict[str, str]) -> dict[str, Subject]:
    alive = dict(subjects)
    for step in ("importing", "child", "start"):  # all have imported before the first is loaded
        for name, subject in list(alive.items()):
            try:
                getattr(subject, step)
            except ChildFailed as error:
                subject.close()
                del alive[name]
                notes[f"candidate {name}"], failure = f"left out: it {error}", error
    if not alive:
        raise failure
    return alive
