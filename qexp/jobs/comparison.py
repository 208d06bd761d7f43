"""Decides which candidate of a job is measured and what it is compared with, and takes all measurements of one run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from qexp.artifact import Artifact
from qexp.engine.base import Engine
from qexp.files import made_since, write_json
from qexp.keys import key, plain
from qexp.launch import ChildFailed, ConnectionLost
from qexp.measure.base import Context, ParityError, Turns, ranking, run_measures
from qexp.measure.candidate import Candidate
from qexp.measure.children import Limits
from qexp.measure.device import HERE, Device
from qexp.measure.disturbance import DISTURBED
from qexp.measure.images import EvaluationSet
from qexp.metrics import candidate_metric
from qexp.records import Measurement
from qexp.types import Unsupported, UserError, nearest

Made = TypeVar("Made")
OF_AUTO = ("candidates", "trial", "accept_points", "accept_images")  # options of conf/engine/auto.yaml


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


def engines_of(config: DictConfig) -> dict[str, Engine]:
    """Make the engine of a config node, or all candidates of the node of `auto`, by name.

    What an experiment says of the candidates of `auto` is taken out of the node of an engine that is chosen by name.

    Raises:
        UserError: All candidates are null.
    """
    if "_target_" in config:
        with open_dict(config):
            for option in OF_AUTO:
                config.pop(option, None)
        engine = instantiate(config)
        return {engine.name: engine}
    candidates = config.candidates
    engines = {name: instantiate(engine) for name, engine in candidates.items() if engine is not None}
    if not engines:
        raise UserError(
            f"Every candidate is null ({', '.join(candidates)}); leave one of them, or choose an engine by its name."
        )
    return engines


def identities(engines: dict[str, Engine], name: Callable[[Engine], str], device: Device = HERE) -> list[Any]:
    """Say what each engine will run, in plain values that keys can be made of.

    Args:
        engines: Engines by name.
        name: Gives the name of what an engine runs.
        device: Where they run.

    Returns:
        For each engine, the name of what it runs and its options, or its own name and the reason why it runs nothing.
    """
    found: list[Any] = []
    for engine in engines.values():
        try:
            device.check(engine)
            found.append([name(engine), plain(engine, "engine")])
        except (Unsupported, UserError) as reason:
            found.append([engine.name, str(reason)])
    return found


def accepted_by(engines: dict[str, Engine], make: Callable[[Engine], Made], notes: dict[str, str]) -> dict[str, Made]:
    """Call `make` for each engine, and leave out those for which it raises an error, whatever that is.

    Args:
        engines: Engines by name.
        make: What to call.
        notes: Says afterwards which engines were left out, and why.

    Returns:
        What `make` returned, by engine.

    Raises:
        ConnectionLost: The device can no longer be reached, which is no reason to leave an engine out.
        Exception: All engines are left out, the first one for this reason.
    """
    accepted, refusals = {}, list[Exception]()
    for name, engine in engines.items():
        try:
            accepted[name] = make(engine)
        except ConnectionLost:
            raise
        except Exception as reason:  # libraries raise all sorts of errors on networks that they cannot take
            refusals.append(reason)
            notes[f"candidate {name}"] = f"left out: {sentence(reason)}"
    if not accepted:
        raise refusals[0]
    return accepted


def sentence(error: Exception) -> str:
    """What an error says: all of it if it was written for users, otherwise its kind and its first line."""
    if isinstance(error, (Unsupported, UserError)):
        return str(error)
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0][:300]}"


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


def fp32_on(device: Device, engines: dict[str, Engine], make: Callable[[Engine], Candidate]) -> dict[str, Candidate]:
    """The fp32 network on each engine that accepts it. On another device, there may be none."""
    if device.here:
        return accepted_by(engines, make, {})
    there = {name: engine for name, engine in engines.items() if runs(device, engine)}
    return accepted_by(there, make, {}) if there else {}


def baseline_on(
    device: Device, engine: Engine, compared: dict[str, Candidate], make: Callable[[Engine], Candidate],
    notes: dict[str, str],
) -> Candidate | None:  # fmt: skip
    """The fp32 network with which everything on another device is timed in turns.

    Args:
        device: The device.
        engine: The engine of the baseline, if the device has it.
        compared: The fp32 network on other engines, of which otherwise the first is taken.
        make: Makes the candidate of an engine.
        notes: Says afterwards which engine it is.

    Returns:
        The candidate, or None if no engine there takes the network.
    """
    found = fp32_on(device, {engine.name: engine}, make) or compared
    if not found:
        notes["speedup"] = f"no engine on {device.name} takes the network in fp32"
        return None
    baseline = next(iter(found.values()))
    notes["speedup"] = f"on {device.name}, everything is compared with fp32 on {baseline.engine.name}"
    return baseline


def runs(device: Device, engine: Engine) -> bool:
    try:
        device.check(engine)
    except (Unsupported, UserError):
        return False
    return True


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


def check_fp32(
    parity: Any, baseline: Candidate | None, tests: EvaluationSet | None, cache: Path, candidate: Candidate
) -> None:
    """Check by the measure `parity` that an engine computes the fp32 network, if that is measured at all.

    Raises:
        ParityError: It computes something else.
    """
    if parity is not None and baseline is not None and tests is not None:
        parity.check_fp32(candidate, baseline, tests, cache)


def fastest_known(
    candidates: dict[str, Candidate], trial: Turns, cache: Path, judge: Callable[[Candidate], None]
) -> Candidate | None:
    """Find the fastest candidate. They are timed once for all jobs on this machine that ask for the same.

    Args:
        candidates: Candidates by name. Times that were taken before their `since` do not count.
        trial: How they are timed.
        cache: Folder below which the times are stored.
        judge: Raises ParityError for a candidate that computes something else than fp32, which then does not count.

    Returns:
        The fastest candidate, or None if other processes disturbed the trial.

    Raises:
        ChildFailed: All candidates failed.
        ParityError: All candidates compute something else.
    """
    if len(candidates) == 1:
        return next(iter(candidates.values()))
    file = cache / "fastest" / f"{fastest_key(candidates, trial)[:24]}.json"
    if not made_since(file, max(candidate.since for candidate in candidates.values())):
        said: dict[str, str] = {}
        ranked = ranking(faithful(candidates, judge), trial, said)
        for candidate in candidates.values():
            candidate.close()
        if "trial" in said:
            return None
        write_json(file, ranked)
    return candidates[next(iter(json.loads(file.read_text())))]


def faithful(candidates: dict[str, Candidate], judge: Callable[[Candidate], None]) -> dict[str, Candidate]:
    """The candidates that `judge` accepts.

    Raises:
        ChildFailed: All candidates failed.
        ParityError: None is accepted, the last one for this reason.
    """
    accepted, refusal = {}, None
    for name, candidate in candidates.items():
        try:
            judge(candidate)
            accepted[name] = candidate
        except (ParityError, ChildFailed) as error:
            refusal = error
    if not accepted and refusal:
        raise refusal
    return accepted


def fastest_key(candidates: dict[str, Candidate], trial: Turns) -> str:
    asked = {name: [s.identity, s.batch, s.threads, s.limits] for name, s in candidates.items()}
    where = next((candidate.device for candidate in candidates.values()), HERE).place()
    return key("fastest", code=["qexp.measure.base", "qexp.measure.parity"], candidates=asked, trial=trial, place=where)


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
