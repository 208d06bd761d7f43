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
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from filelock import FileLock

from qexp.engine.base import Engine
from qexp.files import building, file_digest, made_since
from qexp.keys import key, plain
from qexp.launch import Child, ChildFailed
from qexp.measure import child as measuring_child
from qexp.measure.machine import place
from qexp.metrics import Metric
from qexp.types import Artifact, Measurement

# One place for all users of a machine, whatever TMPDIR says.
HOST_LOCK = Path("/tmp" if os.name == "posix" else tempfile.gettempdir()) / "qexp-measure.lock"


@dataclass(frozen=True)
class EvaluationSet:
    """Images to compute logits of, decoded, with their labels.

    Args:
        content: Which images these are, whichever the folder that they lie in.
        images: File of images[N,H,W,C] uint8 (.npy).
        labels: File of labels[N] int64 (.npy).
        meaningful: False for pretend images or random weights.
        chosen: File of the indices that belong to it (.json), None for all.
    """

    content: str
    images: Path
    labels: Path
    meaningful: bool
    chosen: Path | None = None

    @classmethod
    def validation(cls, artifact: Artifact, cache: Path) -> EvaluationSet | None:
        """The validation part of the data an artifact was made with, which no weight was trained on, if it is still in `cache`."""
        folder = cache / "data" / artifact.data.cache_name
        indices = folder / artifact.data.validation_file
        if not indices.exists():
            return None
        content = f"{folder.name}/{indices.name}"
        return cls(content, folder / "train_images.npy", folder / "train_labels.npy", artifact.has_accuracy, indices)

    @property
    def classes(self) -> np.ndarray:
        """labels[N] of those that belong to it."""
        labels = np.load(self.labels)
        return labels[json.loads(self.chosen.read_text())] if self.chosen else labels

    @classmethod
    def of(cls, artifact: Artifact, cache: Path) -> EvaluationSet | None:
        """The test part of the data an artifact was made with, if its decoded images are still in `cache`; for pretend data, which
        is kept nowhere, 64 images of its shape."""
        folder = cache / ("pretend" if artifact.data.pretend else "data") / artifact.data.cache_name
        if artifact.data.pretend and not folder.exists():
            channels, height, width = artifact.data.input_shape
            with building(folder) as partial:
                images = np.random.default_rng(0).integers(256, size=(64, height, width, channels), dtype=np.uint8)
                np.save(partial / "test_images.npy", images)
                np.save(partial / "test_labels.npy", np.zeros(64, np.int64))
        if not folder.exists():
            return None
        content = f"{folder.name}/test"
        return cls(content, folder / "test_images.npy", folder / "test_labels.npy", artifact.has_accuracy)


@dataclass(frozen=True)
class Limits:
    """Of one question to a measuring child: seconds, and resident memory in MB (None: no limit)."""

    timeout_s: float
    memory_mb: float | None


class Candidate:
    """An artifact on an engine, loaded in a child process when first asked for.

    Args:
        artifact: What is run.
        engine: Who runs it.
        batch: Images per call.
        threads: Of the engine.
        limits: Of each question to the child.
        persistent: Whether its child is that of the last such candidate on the same engine, if it lives, instead of a
            fresh one.
        since: Logits that were kept before this time, in nanoseconds, are computed anew.
    """

    def __init__(
        self, artifact: Artifact, engine: Engine, batch: int, threads: int, limits: Limits, persistent: bool = False,
        since: int = 0,
    ):  # fmt: skip
        self.artifact, self.engine, self.batch, self.threads, self.limits = artifact, engine, batch, threads, limits
        self.persistent, self.since = persistent, since
        self._child: Child | None = None
        self._imported = False
        self._started: dict[str, Any] = {}

    def beside(self, artifact: Artifact) -> Candidate:
        """Another artifact on the same engine; in a standing child the two take turns."""
        return Candidate(artifact, self.engine, self.batch, self.threads, self.limits, self.persistent, self.since)

    def launch(self) -> Child:
        """Start the child, unless it runs. It imports its engine, which takes seconds and may overlap with others' imports."""
        if self._child is None:
            self._child = (PERSISTENT.get if self.persistent else new_child)(self.engine, self.threads, self.limits)
        return self._child

    def ready_child(self) -> Child:
        """The child, launched where there is none, when it has imported its engine."""
        child = self.launch()
        if not self._imported:
            child.ask("ready")
            self._imported = True
        return child

    def start(self) -> dict[str, Any]:
        """Load the network in the child, unless it holds it.

        Returns load_ms, first_call_ms, memory_mb and device_memory_mb (None where there is none, or the system cannot tell).
        """
        child = self.ready_child()
        if child.holds is not self:
            shape = [self.batch, *self.artifact.data.input_shape]
            child.holds = None
            self._started = child.ask("start", file=str(self.file), threads=self.threads, shape=shape)
            child.holds = self
        return self._started

    @property
    def file(self) -> Path:
        return self.artifact.folder / self.engine.file_name(self.batch, self.threads)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from other candidates: the artifact, the file that is loaded, and the engine with its options."""
        return {
            "artifact": self.artifact.key,
            "file": self.artifact.files.get(self.file.name) or file_digest(self.file),
            "engine": plain(self.engine, "engine"),
        }

    def window(self, calls: int, seconds: float) -> list[float]:
        """Milliseconds of single calls in steady state."""
        self.start()
        return self.ready_child().ask("window", calls=calls, seconds=seconds)["samples"]

    def logits(
        self, tests: EvaluationSet, batch: int, cache: Path, count: int | None = None
    ) -> tuple[np.ndarray, float]:
        """The logits of images, from this child or from the disk, where they are kept.

        Args:
            tests: The images.
            batch: Images per call.
            cache: Folder below which logits are kept.
            count: How many images to take, spread evenly over `tests`; None for all.

        Returns:
            logits[N,K] float32, and the seconds that they took.
        """
        data = self.artifact.data
        file = cache / "logits" / f"{self.logits_key(tests, batch, count)[:24]}.npz"
        if not made_since(file, self.since):
            self.start()
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=file.parent) as folder:
                out = Path(folder) / "logits.npy"
                chosen = str(tests.chosen) if tests.chosen else None
                asked = {"images": str(tests.images), "chosen": chosen, "count": count, "batch": batch, "out": str(out)}
                answer = self.ready_child().ask("predict", mean=data.mean, std=data.std, **asked)
                np.savez(Path(folder) / "whole.npz", logits=np.load(out), seconds=answer["seconds"])
                (Path(folder) / "whole.npz").rename(file)
        with np.load(file) as stored:
            return stored["logits"], float(stored["seconds"])

    def logits_key(self, tests: EvaluationSet, batch: int, count: int | None) -> str:
        """The arguments are those of `logits`."""
        data, file = self.artifact.data, self.identity["file"]
        return key(
            "logits", code=["qexp.measure.base"], engine=self.engine, file=file, images=tests.content, mean=data.mean,
            std=data.std, batch=batch, threads=self.threads, count=count, place=place(),
        )  # fmt: skip

    def close(self) -> None:
        """End the child, or have a standing one give the network's memory back; the next question starts or loads anew."""
        child, self._child, self._imported = self._child, None, False
        if child is None:
            return
        if not self.persistent:
            child.stop()
        elif child.alive and child.holds is self:
            child.holds = None
            with contextlib.suppress(ChildFailed):
                child.ask("unload")


def new_child(engine: Engine, threads: int, limits: Limits) -> Child:
    target = {"target": engine.target, "options": engine.options}
    return Child(measuring_child.__name__, target, threads, limits.timeout_s, limits.memory_mb)


class PersistentChildren:
    """Children that this process keeps for the runs to come, at most `most` of them; they end with this process at the latest."""

    def __init__(self, most: int):
        self.most = most
        self.kept: dict[str, Child] = {}  # the one last asked for at the end

    def get(self, engine: Engine, threads: int, limits: Limits) -> Child:
        """One with this engine, if it lives, or a new one in the place of the one not asked for the longest."""
        wanted = repr(
            (engine.target, engine.options, threads, limits, os.getcwd())
        )  # in which it finds what it is to load
        child = self.kept.pop(wanted, None)
        self.kept[wanted] = child if child and child.alive else new_child(engine, threads, limits)
        while len(self.kept) > self.most:
            self.kept.pop(next(iter(self.kept))).stop()
        return self.kept[wanted]

    def stop(self) -> None:
        while self.kept:
            self.kept.popitem()[1].stop()


PERSISTENT = PersistentChildren(most=2)  # the baseline's and the fastest fp32 engine's


@dataclass
class Context:
    """candidate: what is measured; baseline: the fp32 artifact on eager torch at the same batch size, None if there is none;
    best_fp32: the same on the fastest fp32 engine; test_set: None if there are no images; texts: tables for people, by file name;
    notes: why a number is missing, or what was left out, by its name."""

    candidate: Candidate
    baseline: Candidate | None
    test_set: EvaluationSet | None
    cache: Path
    best_fp32: Candidate | None = None
    texts: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def validation_set(self) -> EvaluationSet | None:
        """The images to choose by, as `test_set` are those to judge by."""
        return EvaluationSet.validation(self.candidate.artifact, self.cache)

    @property
    def candidates(self) -> list[Candidate]:
        """All that are timed in turns: the candidate first, none twice."""
        different: dict[str, Candidate] = {}
        for candidate in (self.candidate, self.baseline, self.best_fp32):
            if candidate:
                different.setdefault(json.dumps(candidate.identity), candidate)
        return list(different.values())

    def close(self) -> None:
        for candidate in (self.candidate, self.baseline, self.best_fp32):
            if candidate:
                candidate.close()


class ParityError(Exception):
    """An engine computes something else than the graph it was given; the message says by how much."""


class Turns(Protocol):
    """What can time several candidates in turns: milliseconds of single calls, by candidate and window."""

    @property
    def options(self) -> dict[str, Any]:
        """What decides how it times them."""

    def take_turns(self, candidates: list[Candidate]) -> list[list[list[float]]]: ...


class Measure(ABC):
    """One question to the candidate of a run. metrics: those it answers with that the table of qexp.metrics does not know."""

    metrics: tuple[Metric, ...] = ()

    @abstractmethod
    def measure(self, context: Context) -> list[Measurement]:
        """Errors: ChildFailed where the measuring child did not survive."""


@contextlib.contextmanager
def alone_on_host() -> Iterator[None]:
    """Hold this machine's measuring lock: two measurements at once would disturb each other.

    The system frees it when its holder dies, and every user may take it.
    """
    with FileLock(HOST_LOCK, mode=0o666):
        yield


def run_measures(measures: dict[str, Measure], context: Context) -> list[Measurement]:
    """All measurements of one run, one after the other, alone on this machine."""
    with alone_on_host(), contextlib.closing(context):
        ready(context.candidates)
        return [measurement for measure in measures.values() for measurement in measure.measure(context)]


def ready(candidates: list[Candidate]) -> None:
    """Import all engines side by side, and wait for the last: nothing is loaded or timed while another still imports."""
    for candidate in candidates:
        candidate.launch()
    for candidate in candidates:
        candidate.ready_child()


def ranking(candidates: dict[str, Candidate], trial: Turns, notes: dict[str, str]) -> dict[str, float]:
    """Median milliseconds by name, the fastest first, timed in turns; the fastest keeps its child, which is fresh.

    One that does not survive its first calls is left out, and `notes` tells why. Errors: ChildFailed where none survives.
    """
    with alone_on_host():
        try:
            alive = _survivors(candidates, notes)
            windows = trial.take_turns(list(alive.values()))
        except BaseException:
            for candidate in candidates.values():
                candidate.close()
            raise
    medians = {
        name: statistics.median(statistics.median(w) for w in taken) for name, taken in zip(alive, windows, strict=True)
    }
    ranked = dict(sorted(medians.items(), key=lambda item: item[1]))
    for name in list(ranked)[1:]:
        candidates[name].close()
    return ranked


def _survivors(candidates: dict[str, Candidate], notes: dict[str, str]) -> dict[str, Candidate]:
    alive = dict(candidates)
    for step in (
        Candidate.launch,
        Candidate.ready_child,
        Candidate.start,
    ):  # all have imported before the first is loaded
        for name, candidate in list(alive.items()):
            try:
                step(candidate)
            except ChildFailed as error:
                candidate.close()
                del alive[name]
                notes[f"candidate {name}"], failure = f"left out: it {error}", error
    if not alive:
        raise failure
    return alive
