"""The job of benchmark.py: measures an artifact, or a network that is compressed first, on engines."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from qexp.artifact import Artifact
from qexp.engine.base import Engine
from qexp.files import check_digests
from qexp.jobs.comparison import Outcome, limits_of, measure, test_images
from qexp.jobs.compress import compress, planned_params
from qexp.jobs.engines import accepted_by, engines_of, identities
from qexp.jobs.fp32 import baseline_on, fp32_on
from qexp.jobs.given import NOTHING, Given
from qexp.jobs.run import JobPlan, forced_since, run_job
from qexp.measure.candidate import Candidate
from qexp.measure.device import HERE, Device
from qexp.measure.images import EvaluationSet
from qexp.types import Unsupported

OF_A_NETWORK = (
    "model", "data", "method", "bits", "recipe", "trainer", "checkpoint", "checkpoint_key", "trust_checkpoint",
    "validation_seen", "train_missing", "init",
)  # fmt: skip


def benchmark(config: DictConfig, device: Device) -> JobPlan:
    """Plan to measure the artifact that the config names, on a device.

    It is compared with the fp32 artifact of the same weights if that lies beside it.

    Raises:
        UserError: There is no artifact, its files were changed, or all engines are null.
    """
    artifact = Artifact.read(Path(config.artifact))
    check_digests(artifact.folder, artifact.files)
    folder = artifact.folder.parent / artifact.reference
    fp32, since = Artifact.read(folder) if folder.exists() else None, forced_since(config)
    engines, fp32_engines, baseline_engine = (
        engines_of(config.engine),
        engines_of(config.fp32_engines),
        instantiate(config.baseline.engine),
    )

    def candidate(artifact: Artifact, engine: Engine, on: Device = device, persistent: bool = False) -> Candidate:
        if not (
            engine.spec.reads(artifact.engine_spec)
            or engine.runs_simulated
            and artifact.engine_spec.formats == ("pt2",)
        ):
            raise Unsupported(
                f"{engine.name} does not run {artifact.folder.name}, which was made for other kernels; compress for it"
            )
        on.check(engine)
        threads = config.threads if on is device else HERE.physical_cores()
        artifact = engine.lower(artifact, config.batch_size, threads, since)
        return Candidate(artifact, engine, config.batch_size, threads, limits_of(config), persistent, since, on)

    def run() -> Outcome:
        notes: dict[str, str] = {}
        candidates = accepted_by(engines, lambda engine: candidate(artifact, engine), notes)
        tests = EvaluationSet.test(artifact, Path(config.outputs) / "cache", test_images(config))
        if fp32 is None:
            return measure(config, candidates, None, {}, tests, notes)
        exact = candidate(fp32, baseline_engine, device if device.here else HERE, persistent=True)
        on_device = partial(candidate, fp32)
        compared = fp32_on(device, fp32_engines, on_device)
        baseline = exact if device.here else baseline_on(device, baseline_engine, compared, on_device, notes)
        return measure(config, candidates, baseline, compared, tests, notes, exact)

    def named(engine: Engine) -> str:
        return fp32.key if fp32 else ""

    measured = identities(engines, lambda engine: artifact.key, device)
    reference = identities({"baseline": baseline_engine}, named) if fp32 else []
    reference += identities(fp32_engines, named, device) if fp32 else []
    return JobPlan([artifact.files[artifact.graph], measured, reference], run, None)


def main(config: DictConfig, given: Given = NOTHING) -> None:
    if config.artifact is None:
        run_job(config, "benchmark", planned_params(config), compress, given.call)
        return
    planned: dict[str, Any] = Artifact.read(Path(config.artifact)).params
    with open_dict(config):
        for key in OF_A_NETWORK:
            config.pop(key)
    run_job(config, "benchmark", planned, benchmark, given.call)
