"""Decides which candidate of a job is measured, and takes all measurements of one run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from qexp.artifact import Artifact
from qexp.jobs.fp32 import check_fp32, fastest_known
from qexp.launch import ChildFailed
from qexp.measure.base import Context, ParityError, ranking, run_measures
from qexp.measure.candidate import Candidate
from qexp.measure.children import Limits
from qexp.measure.disturbance import DISTURBED
from qexp.measure.images import EvaluationSet
from qexp.metrics import candidate_metric
from qexp.records import Measurement
from qexp.types import Unsupported, UserError, nearest


@dataclass(frozen=True)
class Outcome:
    """What a job measured.

    Attributes:
        candidate: What was measured.
        measurements: The numbers.
        texts: Tables for people, by file name.
        notes: Why a number is missing or what was left out, by its name.
        baseline: What it was timed in turns with, or None.
    """

    candidate: Candidate
    measurements: list[Measurement]
    texts: dict[str, str]
    notes: dict[str, str]
    baseline: Candidate | None = None


def measure(
    config: DictConfig, candidates: dict[str, Candidate], baseline: Candidate | None,
    fp32_engines: dict[str, Candidate], tests: EvaluationSet | None, notes: dict[str, str],
    exact: Candidate | None = None,
) -> Outcome:  # fmt: skip
    """Take all measurements of the config on the fastest candidate that computes what its graph says.

    Args:
        config: Config of the job.
        candidates: Candidates by engine.
        baseline: What the candidate is timed in turns with, or None.
        fp32_engines: The fp32 artifact on each engine, of which the fastest is compared too. May be empty.
        tests: The test images, or None if there are none.
        notes: Says afterwards what was left out or is missing, and why.
        exact: The fp32 artifact on eager torch on this machine, with whose logits others are compared. None: that is
            the baseline.

    Raises:
        ChildFailed: A measuring child failed.
        ParityError: No candidate computes what its graph says.
        UserError: No layer has the name of the config's `picture`.
    """
    check_picture(
        config.picture, [layer.name for candidate in candidates.values() for layer in candidate.artifact.layers]
    )
    cache, exact = Path(config.outputs) / "cache", exact or baseline
    measures = {name: instantiate(node) for name, node in config.measure.items() if isinstance(node, DictConfig)}
    best_fp32 = None
    if fp32_engines:
        judge = partial(check_fp32, measures.get("parity"), exact, tests, cache)
        best_fp32 = fastest_known(fp32_engines, instantiate(config.fp32_engines.get("trial")), cache, judge)
        if best_fp32 is None:
            notes["speedup_vs_best_fp32"] = f"which engine is the fastest for fp32 is unknown: {DISTURBED}"
    if best_fp32:
        best_fp32.persistent = best_fp32.device.here
    ranked = ranking(candidates, instantiate(config.engine.trial), notes) if len(candidates) > 1 else {}
    timings = [candidate_metric(name).of(ms) for name, ms in ranked.items()]
    left = [*ranked] or [*candidates]
    while True:
        name = left.pop(0)
        if left and (worse := outdone(config, candidates, name, measures.get("accuracy"), notes)):
            candidates[name].close()
            notes[f"candidate {name}"] = f"left out: {worse}"
            continue
        judged = judge_of(candidates[name], exact, notes)
        context = Context(
            candidates[name], baseline, tests, cache, best_fp32, notes=notes, fp32_here=exact, judged=judged
        )
        try:
            found = [*run_measures(measures, context), *timings]
            return Outcome(context.candidate, found, context.texts, notes, baseline)
        except ParityError as error:
            if not left:
                raise
            notes[f"candidate {name}"] = f"left out: {error}"


def judge_of(candidate: Candidate, exact: Candidate | None, notes: dict[str, str]) -> Candidate | None:
    """What is scored on the test images in the place of a candidate that another device times, or None if it is itself.

    It is the same file on the same engine on this machine, or else the graph on eager torch.
    """
    device = candidate.device
    if device.here or device.accuracy_images is not None:
        if not device.here:
            notes["top1"] = (
                f"of {device.accuracy_images} images, spread over all of them, that {device.name} classified"
            )
        return None
    try:
        judged, by = candidate.on_this_machine(), f"the same file on {candidate.engine.name}"
    except Unsupported:
        if exact is None or "pt2" not in candidate.artifact.engine_spec.formats:
            return None
        judged, by = exact.beside(candidate.artifact), "the graph on eager torch"
    notes["top1"] = f"accuracy is what {by} gets on this machine; {device.name} agrees on the images of parity"
    return judged


def quantise_unlike(artifacts: Iterable[Artifact]) -> bool:
    """Whether some artifacts spell out the integer arithmetic, and others leave it to their engine."""
    return len({artifact.has_qdq for artifact in artifacts}) > 1


def outdone(
    config: DictConfig, candidates: dict[str, Candidate], name: str, accuracy: Any, notes: dict[str, str]
) -> str:
    """Why a candidate that quantises by itself is worse than the one that runs the graph.

    Returns:
        The reason, or an empty string if it is not worse, runs the graph itself, or cannot be compared.
    """
    candidate, cache = candidates[name], Path(config.outputs) / "cache"
    if not candidate.device.here:
        return ""  # its images are on this machine
    rivals = [n for n, c in candidates.items() if c.artifact.has_qdq and f"candidate {n}" not in notes]
    if accuracy is None or candidate.artifact.has_qdq or not rivals:
        return ""
    images = EvaluationSet.validation(candidate.artifact, cache, config.engine.accept_images)
    if images is None or not images.meaningful:
        return ""
    rival = candidates[rivals[0]]
    try:
        worse: str = accuracy.outdone(candidate, rival, images, cache, config.engine.accept_points)
    except ChildFailed:  # whichever failed says so when it is measured itself
        return ""
    finally:
        rival.close()
    return worse


def test_images(config: DictConfig) -> int | None:
    """How many test images the measures of a config need, or None for all."""
    accuracy, parity = config.measure.get("accuracy"), config.measure.get("parity")
    if accuracy and accuracy.part != "validation":
        return instantiate(accuracy).images  # which checks it
    return parity.images if parity else 1


def limits_of(config: DictConfig) -> Limits:
    return Limits(config.measure.timeout_s, config.measure.memory_mb)


def check_picture(pattern: str | None, layers: list[str]) -> None:
    if pattern and not any(fnmatchcase(layer, pattern) for layer in layers):
        raise UserError(f"picture={pattern}: no layer is called that. {nearest(pattern, set(layers))}")
