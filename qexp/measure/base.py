"""The base class of measures, what they work with, and how they run: one after the other, alone on the machine."""

from __future__ import annotations

import contextlib
import json
import statistics
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from qexp.launch import ChildFailed
from qexp.measure.candidate import Candidate
from qexp.measure.device import HERE, Device
from qexp.measure.disturbance import DISTURBED
from qexp.measure.images import EvaluationSet
from qexp.measure.timing import Taken
from qexp.metrics import Metric, known_metric
from qexp.progress import doing
from qexp.records import Measurement

FREE_ENOUGH = 0.3  # part of a core that others may use without a word


@dataclass
class Context:
    """What the measures of one run work with.

    Attributes:
        candidate: What is measured.
        baseline: The fp32 artifact at the same batch size on the same device: on eager torch or, on a device without
            that, on another engine. It may be None.
        test_set: The test images, or None if there are none.
        cache: Folder below which logits and decoded images are kept.
        best_fp32: The fp32 artifact on the fastest fp32 engine, or None.
        texts: Tables for people, by file name. Measures add to them.
        notes: Why a number is missing or what was left out, by its name. Measures add to them.
        fp32_here: The fp32 artifact on eager torch on this machine where the baseline is on another device, or None.
        judged: What is scored on the test images in the place of a candidate on another device. None: the candidate is.
    """

    candidate: Candidate
    baseline: Candidate | None
    test_set: EvaluationSet | None
    cache: Path
    best_fp32: Candidate | None = None
    texts: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    fp32_here: Candidate | None = None
    judged: Candidate | None = None

    @property
    def exact(self) -> Candidate | None:
        """The fp32 artifact on eager torch on this machine, with whose logits all others are compared."""
        return self.fp32_here or self.baseline

    def validation_set(self, images: int | None) -> EvaluationSet | None:
        """So many images by which something may be chosen. Those of `test_set` only judge the result."""
        return EvaluationSet.validation(self.candidate.artifact, self.cache, images)

    @property
    def candidates(self) -> list[Candidate]:
        """All candidates that are timed in turns, the measured one first, without repetitions."""
        different: dict[str, Candidate] = {}
        for candidate in (self.candidate, self.baseline, self.best_fp32):
            if candidate:
                different.setdefault(json.dumps(candidate.identity), candidate)
        return list(different.values())

    def close(self) -> None:
        for candidate in (self.candidate, self.baseline, self.best_fp32, self.exact, self.judged):
            if candidate:
                candidate.close()


class ParityError(Exception):
    """An engine computes something else than the graph that it was given. The message says by how much."""


class Turns(Protocol):
    """Something that can time several candidates in turns, such as the measure `Latency`."""

    @property
    def options(self) -> dict[str, Any]:
        """What decides how the candidates are timed."""

    def take_turns(self, candidates: list[Candidate]) -> Taken: ...


class Measure(ABC):
    """One question about the candidate of a run.

    Attributes:
        metrics: The metrics among its answers that the table in qexp.metrics does not have.
    """

    metrics: tuple[Metric, ...] = ()

    @abstractmethod
    def measure(self, context: Context) -> list[Measurement]:
        """Answer the question.

        Raises:
            ChildFailed: The measuring child failed.
        """

    def prepare(self, context: Context) -> None:  # noqa: B027  (most measures have nothing to prepare)
        """Compute on this machine what will be compared with a candidate on another device, before that is locked."""


def run_measures(measures: dict[str, Measure], context: Context) -> list[Measurement]:
    """Take all measurements of one run, one after the other, alone on the candidate's device."""
    device = context.candidate.device
    with contextlib.closing(context):
        if not device.here:
            with HERE.alone():
                for measure in measures.values():
                    measure.prepare(context)
        with device.alone():
            tell_of_busy_cores(device, context.candidate.threads)
            with doing("Loading the engines"):
                ready(context.candidates)
            found = [measurement for measure in measures.values() for measurement in measure.measure(context)]
    return marked_as_emulated(found, context.notes) if device.emulated else found


def marked_as_emulated(found: list[Measurement], notes: dict[str, str]) -> list[Measurement]:
    """Say of measurements that depend on the machine that its processor was emulated."""
    notes["emulated"] = "the device's processor is emulated by one of another kind: its times and memory mean nothing"
    return [
        replace(m, kind="emulated") if (metric := known_metric(m.name)) and metric.per_machine else m for m in found
    ]


def tell_of_busy_cores(device: Device, threads: int) -> None:
    """Say before anything is timed that other processes leave fewer cores than there are threads."""
    free = device.free_cores()
    if free is not None and free < threads - FREE_ENOUGH:
        timed = f"{threads} thread{'s' * (threads > 1)} will be timed"
        print(f"  other processes leave {free:.1f} cores free, and {timed}", flush=True)


def ready(candidates: list[Candidate]) -> None:
    """Let all engines import side by side and wait for the last, so that no import disturbs what is timed."""
    for candidate in candidates:
        candidate.launch()
    for candidate in candidates:
        candidate.ready_child()


def ranking(candidates: dict[str, Candidate], trial: Turns, notes: dict[str, str]) -> dict[str, float]:
    """Time candidates in turns. The fastest keeps its child, and those of the others end.

    Args:
        candidates: Candidates by name.
        trial: How they are timed.
        notes: Says afterwards which candidates failed before they were timed, and why. These are left out. It has a
            note on `trial` if other processes disturbed the trial.

    Returns:
        Median milliseconds of a call by name, the fastest first.

    Raises:
        ChildFailed: All candidates failed.
    """
    with next(iter(candidates.values())).device.alone():
        try:
            with doing(f"Loading {len(candidates)} engines"):
                alive = _survivors(candidates, notes)
            with doing(f"Timing {', '.join(alive)} in turns", still=True):
                taken = trial.take_turns(list(alive.values()))
        except BaseException:
            for candidate in candidates.values():
                candidate.close()
            raise
    if not taken.trusted:
        notes["trial"] = f"the engines were compared while {taken.reason or DISTURBED}"
    medians = {
        name: statistics.median(statistics.median(w) for w in windows)
        for name, windows in zip(alive, taken.windows, strict=True)
    }
    ranked = dict(sorted(medians.items(), key=lambda item: item[1]))
    for name in list(ranked)[1:]:
        candidates[name].close()
    return ranked


def _survivors(candidates: dict[str, Candidate], notes: dict[str, str]) -> dict[str, Candidate]:
    alive = dict(candidates)
    # Each step ends for all candidates before the next begins, so that all have imported before the first is loaded.
    for step in (Candidate.launch, Candidate.ready_child, Candidate.start):
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
