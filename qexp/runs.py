"""One job from its config to its record: whatever happens in it ends as a row, and the other jobs go on."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from qexp.engine.base import Engine
from qexp.errors import explain
from qexp.files import code_digest, write_json
from qexp.launch import ChildFailed
from qexp.measure.base import STANDING, Bench, Disagrees, Limits, Subject, TestSet, Turns, engine_identity, ranking, run_measures
from qexp.measure.machine import environment, physical_cores
from qexp.report.layers import draw_layers
from qexp.reuse import EndedRuns
from qexp.tracking.store import read_records, write_record
from qexp.types import Artifact, Measurement, Record, Unsupported, UserError, command_line, digest, nearest

ON_ERROR = ("continue", "stop")


@dataclass(frozen=True)
class Job:
    """identity: what of the run is known before it is made, in plain values: artifacts and engines; run: makes and measures it."""

    identity: Any
    run: Callable[[], Outcome]


@dataclass(frozen=True)
class Outcome:
    """What a job measured: the subject, the numbers, tables for people by file name, and notes on what is missing by its name."""

    subject: Subject
    measurements: list[Measurement]
    texts: dict[str, str]
    notes: dict[str, str]


def engines_of(config: DictConfig) -> dict[str, Engine]:
    """The engine of the config group node `config`, or all candidates of `auto`, by name. Errors: UserError where all are null."""
    candidates = config.get("candidates")
    if candidates is None:
        engine = instantiate(config)
        return {engine.name: engine}
    engines = {name: instantiate(engine) for name, engine in candidates.items() if engine is not None}
    if not engines:
        raise UserError(f"Every candidate is null ({', '.join(candidates)}); leave one of them, or choose an engine by its name.")
    return engines


def identities(engines: dict[str, Engine], name: Callable[[Engine], str]) -> list[Any]:
    """Each of the engines with the `name` of what it runs, or the reason why it cannot."""
    found: list[Any] = []
    for engine in engines.values():
        try:
            engine.check_machine()
            found.append([name(engine), engine_identity(engine)])
        except (Unsupported, UserError) as reason:
            found.append([engine.name, str(reason)])
    return found


def accepted_by(engines: dict[str, Engine], make: Callable[[Engine], Subject], notes: dict[str, str]) -> dict[str, Subject]:
    """A subject for each engine of this machine that `make` finds no reason against; `notes` tells who was left out.

    Errors: Unsupported or UserError, the first engine's, if none is left.
    """
    accepted, refusals = {}, []
    for name, engine in engines.items():
        try:
            engine.check_machine()
            accepted[name] = make(engine)
        except (Unsupported, UserError) as reason:
            refusals.append(reason)
            notes[f"candidate {name}"] = f"left out: {reason}"
    if not accepted:
        raise refusals[0]
    return accepted


def measure(
    config: DictConfig, subjects: dict[str, Subject], baseline: Subject | None, rivals: dict[str, Subject], tests: TestSet | None,
    notes: dict[str, str],
) -> Outcome:  # fmt: skip
    """All measurements of the config on the fastest of `subjects` that computes what its graph says, against the baseline, the
    fastest of `rivals`, and on the test set, where there are these."""
    check_picture(config.picture, [layer.name for subject in subjects.values() for layer in subject.artifact.layers])
    cache = Path(config.outputs) / "cache"
    rival = fastest_known(rivals, instantiate(config.rivals.get("trial")), cache) if rivals else None
    if rival:
        rival.standing = True
    ranked = ranking(subjects, instantiate(config.engine.trial), notes) if len(subjects) > 1 else {}
    measures = {name: instantiate(node) for name, node in config.measure.items() if isinstance(node, DictConfig)}
    candidates = [Measurement(f"candidate_{name}_ms", ms, "ms") for name, ms in ranked.items()]
    left = [*ranked] or [*subjects]
    while True:
        name = left.pop(0)
        bench = Bench(subjects[name], baseline, tests, cache, rival, notes=notes)
        try:
            return Outcome(bench.subject, [*run_measures(measures, bench), *candidates], bench.texts, notes)
        except Disagrees as error:
            if not left:
                raise
            notes[f"candidate {name}"] = f"left out: {error}"


def fastest_known(subjects: dict[str, Subject], trial: Turns, cache: Path) -> Subject:
    """The fastest of `subjects`, timed once for all jobs on this machine that ask for the same."""
    if len(subjects) == 1:
        return next(iter(subjects.values()))
    asked = [[s.identity, s.batch, s.threads] for s in subjects.values()]
    file = cache / "fastest" / f"{digest([socket.gethostname(), asked])[:24]}.json"
    if not file.exists():
        write_json(file, ranking(subjects, trial, {}))
        for subject in subjects.values():
            subject.close()
    return subjects[next(iter(json.loads(file.read_text())))]


def run_job(config: DictConfig, kind: str, planned: dict[str, Any], plan: Callable[[DictConfig], Job]) -> None:
    """Plan the job, run it unless it ended before, and write its record, finished, unsupported or failed, to the run's folder and
    then to tracking.

    planned: the record's params as far as the config tells them (model, data, method, bits).
    """
    if config.threads == "auto":
        config.threads = physical_cores()
    folder = Path(HydraConfig.get().runtime.output_dir)
    asked = {"engine": HydraConfig.get().runtime.choices["engine"], **{key: config[key] for key in ("batch_size", "threads", "seed")}}
    params = {**planned, **asked}
    print(f"{' · '.join([describe(params), *swept_options()])} ...", flush=True)
    if config.on_error == "stop" and any(record.status == "failed" for record in read_records(sweep_folder())):
        print("  left out: another run of this sweep failed (on_error=stop)", flush=True)
        return
    began = time.perf_counter()
    key, ended = digest([kind, OmegaConf.to_container(config, resolve=True)]), EndedRuns(Path(config.outputs))
    with contextlib.ExitStack() as claims:
        outcome, status, reason = None, "finished", ""
        try:
            check_options(config)
            job = plan(config)
            key = job_key(kind, job, config)
            claims.enter_context(ended.claim(key))
            if took_over(key, ended, config, folder):
                return
            # What every run is compared with imports its engine, which takes seconds, while the artifact is made.
            STANDING.get(instantiate(config.baseline.engine), config.threads, limits_of(config))
            outcome = job.run()
        except Unsupported as refusal:
            status, reason = "unsupported", str(refusal)
        except Exception as error:
            status, reason = "failed", reason_of(error, folder)
        record = make_record(config, kind, key, params, outcome, status, reason)
        write_record(record, folder)
        if status != "unsupported":
            ended.remember(key, folder / "record.json")
    # The record on disk is the result; views of it must not cost the other jobs theirs.
    try:
        if outcome:
            draw_layers(outcome.subject.artifact.folder, folder, config.picture)
        instantiate(config.tracking).log(record, folder)
    except Exception as error:
        print(f"  its pictures or its run in MLflow are missing ({error}); its record is in {folder}", file=sys.stderr, flush=True)
    print(f"  {status} in {time.perf_counter() - began:.0f} s{f': {reason}' if reason else ''}", flush=True)


def job_key(kind: str, job: Job, config: DictConfig) -> str:
    """Of all that determines what a run measures: who is measured on which engines, how, by which code, and where."""
    sources = [Path(__file__).parent / package for package in ("measure", "engine", "launch.py")]
    machine = environment(Path(__file__).parents[1])
    how = OmegaConf.to_container(config.measure, resolve=True)
    place = [machine[name] for name in ("host", "cpu", "cores")]
    return digest([kind, job.identity, config.batch_size, config.threads, how, place, code_digest(*sources)])


def took_over(key: str, ended: EndedRuns, config: DictConfig, folder: Path) -> bool:
    """Whether this sweep has the run already, or an earlier one whose record is then written to `folder` as this run's."""
    if any(other.key == key for other in read_records(sweep_folder())):
        print("  is in this sweep already: one row is enough", flush=True)
        return True
    known = None if config.force else ended.find(key)
    if known is None or (known.status == "failed" and config.retry_failed):
        return False
    write_record(replace(known, sweep=sweep_folder().name), folder)
    if known.artifact:
        check_picture(config.picture, [layer.name for layer in Artifact.read(Path(known.artifact)).layers])
        draw_layers(Path(known.artifact), folder, config.picture)
    print(f"  {known.status} before, in {known.reused} (force=true measures again)", flush=True)
    return True


def limits_of(config: DictConfig) -> Limits:
    return Limits(config.measure.timeout_s, config.measure.memory_mb)


def check_options(config: DictConfig) -> None:
    if config.on_error not in ON_ERROR:
        raise UserError(f"on_error={config.on_error} is unknown. {nearest(str(config.on_error), ON_ERROR)}")
    for key in ("batch_size", "threads"):
        if not isinstance(config[key], int) or config[key] < 1:
            raise UserError(f"{key}={config[key]} is out of range; give a whole number of at least 1{' or auto' * (key == 'threads')}.")


def check_picture(pattern: str | None, layers: list[str]) -> None:
    if pattern and not fnmatch.filter(layers, pattern):
        raise UserError(f"picture={pattern}: no layer is called that. {nearest(pattern, set(layers))}")


def sweep_folder() -> Path:
    """The folder of all jobs of this command; a single run is a sweep of one."""
    hydra = HydraConfig.get()
    return Path(hydra.sweep.dir) if hydra.mode == RunMode.MULTIRUN else Path(hydra.runtime.output_dir).parent


def describe(params: dict[str, Any]) -> str:
    """How a run is called: `resnet34 · static int8 · onnxruntime`, or its bits as given before it is known what it becomes."""
    bits = "" if params["bits"] == "auto" else f" {params['bits']} bits"
    method = params.get("label") or f"{params['method']}{bits}"
    return " · ".join([params["model"], method, params["engine"], f"batch {params['batch_size']}"])


def swept_options() -> list[str]:
    """Options of the method that tell this job of a sweep apart, such as `observer mse`."""
    hydra = HydraConfig.get()
    given = hydra.overrides.task if hydra.mode == RunMode.MULTIRUN else []
    return [override.removeprefix("method.").replace("=", " ", 1) for override in given if override.startswith("method.")]


def reason_of(error: Exception, folder: Path) -> str:
    """One line for the table; the traceback of what no user can put right goes to the run's folder."""
    if isinstance(error, ChildFailed):
        return f"the measurement {error}"
    if isinstance(error, Disagrees):
        return str(error)
    explained = explain(error)
    if explained is not None:
        return explained
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "traceback.txt").write_text(traceback.format_exc())
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''} (see {folder / 'traceback.txt'})"


def make_record(
    config: DictConfig, kind: str, key: str, params: dict[str, Any], outcome: Outcome | None, status: str, reason: str
) -> Record:
    resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    artifact = ""
    if outcome:
        made = outcome.subject.artifact
        params = {**params, **made.params, "engine": outcome.subject.engine.name}
        artifact = str(made.folder)
    return Record(
        kind=kind, key=key, sweep=sweep_folder().name, status=status, reason=reason, label=describe(params), params=params, config=resolved,
        measurements=tuple(outcome.measurements if outcome else ()), environment=environment(Path(__file__).parents[1]),
        command=command_line(), created=datetime.now(UTC).isoformat(timespec="seconds"), artifact=artifact,
        texts=outcome.texts if outcome else {}, notes=outcome.notes if outcome else {},
    )  # fmt: skip
