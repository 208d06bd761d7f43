"""data → baseline → artifact → engine → measurements: what compress.py does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from qexp.jobs.comparison import Outcome, accepted_by, engines_of, identities, measure
from qexp.jobs.run import Job, run_job
from qexp.jobs.subjects import prepare
from qexp.measure.base import TestSet
from qexp.types import Artifact


def main(config: DictConfig) -> None:
    run_job(config, "compress", planned_params(config), compress)


def compress(config: DictConfig) -> Job:
    """One job: its artifacts and engines, how to make them, and how to measure them."""
    method, fp32 = instantiate(config.method), instantiate(config.baseline.method)
    engines, rivals = engines_of(config.engine), engines_of(config.rivals)
    baseline_engine = instantiate(config.baseline.engine)
    subjects = prepare(config)

    def make() -> Artifact:
        for engine in [baseline_engine, *rivals.values()]:
            accepted_by({engine.name: engine}, lambda engine: subjects.artifact(fp32, engine), {})
        return next(iter(accepted_by(engines, lambda engine: subjects.artifact(method, engine), {}).values()))

    def run() -> Outcome:
        notes = dict(subjects.notes)
        candidates = accepted_by(engines, lambda engine: subjects.of(method, engine), notes)
        baseline = subjects.of(fp32, baseline_engine, standing=True)
        compared = accepted_by(rivals, lambda engine: subjects.of(fp32, engine), {})
        return measure(config, candidates, baseline, compared, TestSet.of(baseline.artifact, Path(config.outputs) / "cache"), notes)

    reference = identities({"baseline": baseline_engine}, subjects.named(fp32))
    return Job([identities(engines, subjects.named(method)), reference, identities(rivals, subjects.named(fp32))], run, make)


def planned_params(config: DictConfig) -> dict[str, Any]:
    """What the record of this job says of it before anything is known but the config."""
    choices = HydraConfig.get().runtime.choices
    return {"model": config.model.id, "data": config.data.name or choices["data"], "method": choices["method"], "bits": config.bits}
