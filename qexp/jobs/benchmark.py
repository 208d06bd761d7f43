"""artifact or network → engine → measurements: what benchmark.py does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from qexp.engine.base import Engine
from qexp.files import check_digests
from qexp.jobs.comparison import Outcome, accepted_by, engines_of, identities, limits_of, measure
from qexp.jobs.compress import compress, planned_params
from qexp.jobs.run import Job, run_job
from qexp.measure.base import Subject, TestSet
from qexp.types import Artifact, Unsupported

OF_A_NETWORK = ("model", "data", "method", "bits", "recipe", "trainer", "checkpoint", "train_missing", "init")


def benchmark(config: DictConfig) -> Job:
    """artifact → engine → measurements, of one job; against fp32 if the artifact of the same weights lies beside this one."""
    artifact = Artifact.read(Path(config.artifact))
    check_digests(artifact.folder, artifact.files)
    folder = artifact.folder.parent / artifact.reference
    fp32 = Artifact.read(folder) if folder.exists() else None
    engines, rivals, baseline_engine = engines_of(config.engine), engines_of(config.rivals), instantiate(config.baseline.engine)

    def subject(artifact: Artifact, engine: Engine, standing: bool = False) -> Subject:
        if not (engine.wants.reads(artifact.form) or engine.runs_simulated and artifact.form.formats == ("pt2",)):
            raise Unsupported(f"{engine.name} does not run {artifact.folder.name}, which was made for other kernels; compress for it")
        engine.check_machine()
        artifact = engine.lower(artifact, config.batch_size, config.threads)
        return Subject(artifact, engine, config.batch_size, config.threads, limits_of(config), standing)

    def run() -> Outcome:
        notes: dict[str, str] = {}
        subjects = accepted_by(engines, lambda engine: subject(artifact, engine), notes)
        tests = TestSet.of(artifact, Path(config.outputs) / "cache")
        if fp32 is None:
            return measure(config, subjects, None, {}, tests, notes)
        compared = accepted_by(rivals, lambda engine: subject(fp32, engine), {})
        return measure(config, subjects, subject(fp32, baseline_engine, standing=True), compared, tests, notes)

    compared_with = {"baseline": baseline_engine, **rivals} if fp32 else {}
    measured = identities(engines, lambda engine: artifact.key)
    reference = identities(compared_with, lambda engine: fp32.key if fp32 else "")
    return Job([artifact.files[artifact.graph], measured, reference], run, None)


def main(config: DictConfig) -> None:
    if config.artifact is None:
        run_job(config, "benchmark", planned_params(config), compress)
        return
    planned: dict[str, Any] = Artifact.read(Path(config.artifact)).params
    with open_dict(config):
        for key in OF_A_NETWORK:
            config.pop(key)
    run_job(config, "benchmark", planned, benchmark)
