"""Compress trained networks and measure them: `python compress.py -m model=vgg19,resnet34 method=dynamic,static`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from qexp.cli import command, same_choices
from qexp.data.base import ImageData, open_data
from qexp.engine.base import Engine
from qexp.files import file_digest
from qexp.measure.base import Subject, TestSet
from qexp.method.base import Method, artifact_name, make_artifact
from qexp.model.base import build_network, load_weights, read_weights
from qexp.model.baseline import Baseline, find_baseline
from qexp.runs import Job, Outcome, accepted_by, engines_of, identities, limits_of, measure, run_job
from qexp.types import UserError, digest
from train import train_baseline


def compress(config: DictConfig) -> Job:
    """data → baseline → artifact → engine → measurements, of one job."""
    method, fp32 = instantiate(config.method), instantiate(config.baseline.method)
    engines, rivals = engines_of(config.engine), engines_of(config.rivals)
    baseline_engine = instantiate(config.baseline.engine)
    data, network, source = prepare(config)
    limits = limits_of(config)

    def named(method: Method) -> Callable[[Engine], str]:
        return lambda engine: artifact_name(method, data, engine.wants, source)

    def subject(method: Method, engine: Engine, standing: bool = False) -> Subject:
        artifact = make_artifact(method, network, data, engine.wants, source, Path(config.outputs) / "artifacts")
        artifact = engine.lower(artifact, config.batch_size, config.threads)
        return Subject(artifact, engine, config.batch_size, config.threads, limits, standing)

    def run() -> Outcome:
        notes: dict[str, str] = {}
        subjects = accepted_by(engines, lambda engine: subject(method, engine), notes)
        baseline = subject(fp32, baseline_engine, standing=True)
        compared = accepted_by(rivals, lambda engine: subject(fp32, engine), {})
        return measure(config, subjects, baseline, compared, TestSet.of(baseline.artifact, Path(config.outputs) / "cache"), notes)

    reference = identities({"baseline": baseline_engine}, named(fp32))
    return Job([identities(engines, named(method)), reference, identities(rivals, named(fp32))], run)


def prepare(config: DictConfig) -> tuple[ImageData, nn.Module, dict[str, Any]]:
    """The data, the trained network, and where its weights come from."""
    data = open_data(config)
    network, source = trained_network(config, data)
    return data, network, source


def trained_network(config: DictConfig, data: ImageData) -> tuple[nn.Module, dict[str, Any]]:
    """The network with the weights that `checkpoint` names, and where they come from.

    The data is normalised as the baseline's was. Errors: UserError where there is no baseline and none is to be trained.
    """
    torch.manual_seed(config.seed)
    network = build_network(config.model).eval()
    source = {"model": config.model.id, "config": digest(OmegaConf.to_container(config.model, resolve=True))}
    if config.checkpoint == "random":
        return network, {**source, "weights": "random", "seed": config.seed}
    path = Path(config.checkpoint)
    if config.checkpoint != "auto" and not path.is_dir():
        load_weights(network, read_weights(path), str(path))
        return network, {**source, "weights": file_digest(path)}
    baseline = newest_baseline(config, data) if config.checkpoint == "auto" else Baseline.read(path)
    baseline.check()
    load_weights(network, read_weights(baseline.weights), str(baseline.folder))
    data.normalise_like(baseline.data)
    return network, {**source, "weights": baseline.weights_digest}


def newest_baseline(config: DictConfig, data: ImageData) -> Baseline:
    """The newest baseline of this model and data; trained now where there is none and `train_missing` allows it."""
    found = find_baseline(Path(config.outputs) / "baselines", config.model.id, data.spec.name)
    if found:
        return found
    if config.train_missing is True or (config.train_missing == "auto" and data.trains_in_seconds):
        return train_baseline(config, data)
    raise UserError(
        f"There is no trained {config.model.id} for the data {data.spec.name!r} in {config.outputs}/baselines. Train it with\n"
        f"  {same_choices('train.py')}\nor give checkpoint=FILE, checkpoint=random (size and latency only) or train_missing=true."
    )


def planned_params(config: DictConfig) -> dict[str, Any]:
    """What the record of this job says of it before anything is known but the config."""
    choices = HydraConfig.get().runtime.choices
    return {"model": config.model.id, "data": config.data.name or choices["data"], "method": choices["method"], "bits": config.bits}


@command("compress")
def main(config: DictConfig) -> None:
    run_job(config, "compress", planned_params(config), compress)


if __name__ == "__main__":
    main()
