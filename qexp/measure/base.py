"""What a measure is, what it works with, and how candidates are measured: one after the other, alone on a machine."""

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

from filelock import FileLock

from qexp.launch import ChildFailed
from qexp.measure.candidate import Candidate
from qexp.measure.images import EvaluationSet
from qexp.metrics import Metric
from qexp.types import Measurement

# One place for all users of a machine, whatever TMPDIR says.
HOST_LOCK = Path("/tmp" if os.name == "posix" else tempfile.gettempdir()) / "qexp-measure.lock"


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
