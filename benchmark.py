"""Measure artifacts again: `python benchmark.py -m artifact=outputs/artifacts/NAME engine=eager,onnxruntime batch_size=1,8,32`."""

from __future__ import annotations

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from qexp.cli import command
from qexp.engine.base import Engine
from qexp.files import check_digests
from qexp.measure.base import Limits, Subject, TestSet
from qexp.runs import Outcome, accepted_by, engines_of, measure, run_job
from qexp.types import Artifact, Unsupported


def benchmark(config: DictConfig) -> Outcome:
    """artifact → engine → measurements, of one job; against the fp32 baseline if its artifact lies beside this one."""
    artifact = Artifact.read(Path(config.artifact))
    check_digests(artifact.folder, artifact.files)

    def subject(artifact: Artifact, engine: Engine) -> Subject:
        if engine.wants.format != artifact.format:
            raise Unsupported(f"{engine.name} runs {engine.wants.format} artifacts, and {artifact.folder.name} is a {artifact.format}")
        limits = Limits(config.measure.timeout_s, config.measure.memory_mb)
        return Subject(engine.lower(artifact), engine, config.batch_size, config.threads, limits)

    subjects = accepted_by(engines_of(config), lambda engine: subject(artifact, engine))
    reference = artifact.folder.parent / artifact.reference
    baseline = subject(Artifact.read(reference), instantiate(config.baseline.engine)) if reference.exists() else None
    return measure(config, subjects, baseline, TestSet.of(artifact, Path(config.outputs) / "cache"))


@command("benchmark")
def main(config: DictConfig) -> None:
    artifact = Artifact.read(Path(config.artifact))
    run_job(config, "benchmark", artifact.params, benchmark)


if __name__ == "__main__":
    main()
