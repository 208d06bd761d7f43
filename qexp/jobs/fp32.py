"""The fp32 network that a run is compared with: on the baseline's engine, and on the fastest of all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qexp.engine.base import Engine
from qexp.files import made_since, write_json
from qexp.jobs.engines import accepted_by, runs
from qexp.keys import key
from qexp.launch import ChildFailed
from qexp.measure.base import ParityError, Turns, ranking
from qexp.measure.candidate import Candidate
from qexp.measure.device import HERE, Device
from qexp.measure.images import EvaluationSet


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
