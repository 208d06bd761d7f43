"""Takes one job from its config to its record. Whatever happens to it, the other jobs of the sweep go on."""

from __future__ import annotations

import functools
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from qexp.artifact import Artifact
from qexp.errors import explain
from qexp.files import RECORDS, link_instead
from qexp.jobs.comparison import Outcome, check_picture, limits_of
from qexp.jobs.reuse import EndedRuns
from qexp.keys import key
from qexp.launch import ChildFailed, ConnectionLost
from qexp.measure.base import ParityError
from qexp.measure.children import PERSISTENT
from qexp.measure.device import HERE, Device
from qexp.records import FP32_ENGINE, LOCAL, Record
from qexp.report.layers import draw_layers
from qexp.tracking.store import read_records, write_record
from qexp.types import Unsupported, UserError, command_line, digest, first_line, nearest

CHOICES = {"on_error": ("continue", "stop"), "phase": ("all", "compress", "measure")}


@dataclass(frozen=True)
class JobPlan:
    """What a job is going to do.

    Attributes:
        identity: The artifacts and engines of the run in plain values, known before anything is made.
        run: Makes what is missing, and measures.
        make: Only makes what measuring needs, and gives the artifact of each engine. Takes notes on engines that are
            left out. None if everything is there.
    """

    identity: Any
    run: Callable[[], Outcome]
    make: Callable[[dict[str, str]], dict[str, Artifact]] | None


def run_job(
    config: DictConfig,
    kind: str,
    planned: dict[str, Any],
    plan: Callable[[DictConfig, Device], JobPlan],
    call: str = "",
) -> None:
    """Plan a job, run it unless it ended before, and write its record to the run's folder and then to tracking.

    Args:
        config: Config of the job.
        kind: What the job does: `compress` or `benchmark`.
        planned: Params of the record that the config tells: model, data, method and bits.
        plan: Makes the plan, for the device on which the network is measured.
        call: The call of a Python program that asked for the job, or empty for the command line.
    """
    try:
        device: Device = instantiate(config.device)
    except Exception as error:
        device, plan = HERE, functools.partial(refuse, error)
    with closing(device):
        run_on(device, config, kind, planned, plan, call)


def refuse(error: Exception, config: DictConfig, device: Device) -> JobPlan:
    """In the place of a plan: fail for a reason that was found before there was a job."""
    raise error


def run_on(
    device: Device, config: DictConfig, kind: str, planned: dict[str, Any],
    plan: Callable[[DictConfig, Device], JobPlan], call: str,
) -> None:  # fmt: skip
    """Do what `run_job` does on a device, which the caller closes."""
    if config.threads == "auto" and device.here:
        config.threads = device.physical_cores()
    job = Job(config, kind, planned, device, call)
    print(f"{job.name} ...", flush=True)
    if config.on_error == "stop" and any(record.status == "failed" for record in read_records(sweep_folder())):
        print("  left out: another run of this sweep failed (on_error=stop)", flush=True)
        return
    try:
        job_plan = device.steadily(lambda: planned_on(device, config, plan))
    except Exception as error:
        record: Record | None = job.unplanned(error)
    else:
        record = job.finish(job_plan)
    if record is None:
        print("  is in this sweep already: one row is enough", flush=True)
        return
    job.show(record)
    before = (
        f" before, in {record.reused} (force=true measures again)" if record.reused else f" in {record.seconds:.0f} s"
    )
    print(f"  {record.status}{before}{f': {record.reason}' if record.reason else ''}", flush=True)


def planned_on(device: Device, config: DictConfig, plan: Callable[[DictConfig, Device], JobPlan]) -> JobPlan:
    check_options(config)
    device.connect()
    if config.threads == "auto":
        config.threads = device.physical_cores()
    return plan(config, device)


class Job:
    """One job of a sweep. The arguments are those of `run_on`."""

    def __init__(self, config: DictConfig, kind: str, planned: dict[str, Any], device: Device, call: str = ""):
        self.began, hydra = time.perf_counter(), HydraConfig.get()
        self.command = call or command_line()
        self.config, self.kind, self.folder = config, kind, Path(hydra.runtime.output_dir)
        self.device = device
        self.params = {
            **planned,
            "engine": hydra.runtime.choices["engine"],
            **{k: config[k] for k in ("batch_size", "threads", "seed")},
            **({} if device.here else {"device": device.name}),
        }
        self.name = " · ".join([describe(self.params), *swept_options()])

    def finish(self, job_plan: JobPlan) -> Record | None:
        """Write the record of an earlier run or of what happens now, or return None if the sweep has it already."""
        key = job_key(self.kind, job_plan, self.config, self.device)
        ended = EndedRuns(Path(self.config.outputs))
        with ended.claim(key):
            if not ended.first_in(sweep_folder(), key, self.folder):
                return None
            try:
                record = self.earlier(key, ended) or self.made(key, job_plan)
            except Exception as error:
                record = self.broken(key, error)
            write_record(record, self.folder)
            if not record.reused and record.status in ("finished", "failed"):
                ended.remember(record, self.folder / "record.json")
        return record

    def unplanned(self, error: Exception) -> Record:
        """Write the record of a job that could not be planned."""
        record = self.broken(digest([self.kind, OmegaConf.to_container(self.config, resolve=True)]), error)
        write_record(record, self.folder)
        return record

    def earlier(self, key: str, ended: EndedRuns) -> Record | None:
        """Find the record of a run with this key that ended before, unless it is to be made again."""
        known = None if self.config.force or self.config.phase == "compress" else ended.find(key)
        if known is None or known.disturbed or (known.status == "failed" and self.config.retry_failed):
            return None
        if known.artifact and self.config.picture:
            check_picture(self.config.picture, [layer.name for layer in Artifact.read(Path(known.artifact)).layers])
        here = (ended.outputs / known.reused).resolve() == self.folder.resolve()  # the job ended and was requeued
        return replace(known, sweep=sweep_folder().name, reused="" if here else known.reused)

    def made(self, key: str, job_plan: JobPlan) -> Record:
        """Run the job, or only make its artifacts in phase=compress."""
        if self.config.phase == "compress":
            if job_plan.make is None:
                raise UserError("phase=compress has nothing to make: the artifact is given. Leave phase=all.")
            notes: dict[str, str] = {}
            made = job_plan.make(notes)
            notes |= {f"artifact for {engine}": artifact.folder.name for engine, artifact in made.items()}
            first = next(iter(made.values()))
            return replace(self.record(key, "compressed", first.folder.name, first), notes=notes)
        # The child of the baseline imports its engine, which takes seconds, while the artifact is made.
        threads = self.config.threads if self.device.here else HERE.physical_cores()
        PERSISTENT.get(instantiate(self.config.baseline.engine), threads, limits_of(self.config))
        outcome = self.device.steadily(job_plan.run)
        return self.record(key, "finished", "", outcome.candidate.artifact, outcome)

    def broken(self, key: str, error: Exception) -> Record:
        """The record of a job that ended with an error."""
        unsupported = isinstance(error, Unsupported)
        return self.record(
            key,
            "unsupported" if unsupported else "failed",
            str(error) if unsupported else reason_of(error, self.folder),
        )

    def record(
        self, key: str, status: str, reason: str, artifact: Artifact | None = None, outcome: Outcome | None = None
    ) -> Record:
        resolved: dict[str, Any] = OmegaConf.to_container(self.config, resolve=True)  # type: ignore[assignment]
        params = (
            self.params
            | (artifact.params if artifact else {})
            | ({"engine": outcome.candidate.engine.name} if outcome else {})
            | {"threads": self.config.threads}
        )
        environment = self.device.environment(Path(__file__).parents[2])
        if outcome and outcome.baseline and not self.device.here:
            environment[FP32_ENGINE] = outcome.baseline.engine.name
        return Record(
            kind=self.kind, key=key, sweep=sweep_folder().name, status=status, reason=reason, label=describe(params),
            params=params, config=resolved, measurements=tuple(outcome.measurements if outcome else ()),
            environment=environment, command=self.command,
            created=datetime.now(UTC).isoformat(timespec="milliseconds"),
            artifact=str(artifact.folder) if artifact else "",
            texts=outcome.texts if outcome else {}, notes=outcome.notes if outcome else {},
            seconds=time.perf_counter() - self.began,
        )  # fmt: skip

    def show(self, record: Record) -> None:
        """Show a record in the artifact's folder, in pictures and in tracking.

        The result is already on disk, so an error here is only printed: it must not cost the other jobs their results.
        """
        try:
            if record.status == "finished":  # tells those who load or deploy the artifact how it was measured
                link_instead(self.folder / "record.json", Path(record.artifact) / RECORDS / f"{record.key}.json")
            # The run that a reused record was taken from has the pictures that are drawn without being asked for.
            if record.artifact and (self.config.picture or not record.reused):
                draw_layers(Path(record.artifact), self.folder, self.config.picture)
            if not record.reused and record.status != "compressed":
                instantiate(self.config.tracking).log(record, self.folder)
        except Exception as error:
            missing = (
                f"its pictures, its run in MLflow or its place in the artifact are missing ({error}); "
                f"its record is in {self.folder}"
            )
            print(f"  {missing}", file=sys.stderr, flush=True)


def job_key(kind: str, job: JobPlan, config: DictConfig, device: Device = HERE) -> str:
    """Key of everything that decides what a run measures: artifacts, engines, measures, code and machine."""
    how: Any = OmegaConf.to_container(config.measure, resolve=True)
    trials = [
        OmegaConf.to_container(OmegaConf.create([config[node].get("trial")]), resolve=True)
        for node in ("engine", "fp32_engines")
    ]
    accepted = [config.engine.get(option) for option in ("accept_points", "accept_images")]
    return key(
        kind, code=["qexp.jobs.comparison"], identity=job.identity, batch_size=config.batch_size,
        threads=config.threads, how=how, trials=trials, accepted=accepted, place=device.place(),
        **device.decides,
    )  # fmt: skip


def check_options(config: DictConfig) -> None:
    """Check the options that all jobs have.

    Raises:
        UserError: An option is unknown or out of range.
    """
    for option, known in CHOICES.items():
        if config[option] not in known:
            raise UserError(f"{option}={config[option]} is unknown. {nearest(str(config[option]), known)}")
    for option in ("batch_size", "threads"):
        given = config[option]
        if (option, given) != ("threads", "auto") and (not isinstance(given, int) or given < 1):
            raise UserError(
                f"{option}={given} is out of range; "
                f"give a whole number of at least 1{' or auto' * (option == 'threads')}."
            )


def sweep_folder() -> Path:
    """Folder of all jobs of this command. A single run is a sweep with one job."""
    hydra = HydraConfig.get()
    return Path(hydra.sweep.dir) if hydra.mode == RunMode.MULTIRUN else Path(hydra.runtime.output_dir).parent


def forced_since(config: DictConfig) -> int:
    """When this command began, in nanoseconds, if it makes everything anew (force=true), or else 0.

    All jobs of a sweep, in whatever process and on whatever machine, read the time of one file. What one of them has
    made anew is therefore not made again by the others.
    """
    if not config.force:
        return 0
    mark = sweep_folder() / ".forced"
    mark.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        mark.touch(exist_ok=False)
    return mark.stat().st_mtime_ns


def describe(params: dict[str, Any]) -> str:
    """What a run is called, such as `resnet34 · static int8 · onnxruntime · batch 1`.

    Before the label of the artifact is known, the name has the method and the bits as they were given.
    """
    bits = "" if params["bits"] == "auto" else f" {params['bits']} bits"
    method = params.get("label") or f"{params['method']}{bits}"
    elsewhere = [params["device"]] if params.get("device", LOCAL) != LOCAL else []
    return " · ".join([params["model"], method, params["engine"], f"batch {params['batch_size']}", *elsewhere])


def swept_options() -> list[str]:
    """Options of the method that were given to this job of a sweep, such as `observer mse`."""
    hydra = HydraConfig.get()
    given = hydra.overrides.task if hydra.mode == RunMode.MULTIRUN else []
    return [
        override.removeprefix("method.").replace("=", " ", 1) for override in given if override.startswith("method.")
    ]


def reason_of(error: Exception, folder: Path) -> str:
    """One line for the table. The traceback of an error that no user can put right goes to the run's folder."""
    if isinstance(error, ChildFailed):
        return f"the measurement {error}"
    if isinstance(error, ParityError | ConnectionLost):
        return str(error)
    explained = explain(error)
    if explained is not None:
        return explained
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "traceback.txt").write_text(traceback.format_exc())
    return f"{type(error).__name__}: {first_line(error)} (see {folder / 'traceback.txt'})"
