"""A trained network, its artifacts, and what measures them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from qexp.cli import same_choices
from qexp.data.base import ImageData, open_data
from qexp.engine.base import Engine
from qexp.files import file_digest
from qexp.jobs.comparison import limits_of
from qexp.jobs.run import forced_since
from qexp.measure.candidate import Candidate
from qexp.method.artifacts import artifact_name, make_artifact
from qexp.method.base import Method
from qexp.model.base import build_network, load_weights, read_weights
from qexp.model.baseline import Baseline, find_baseline
from qexp.types import Artifact, DataSpec, UserError


@dataclass(frozen=True)
class ArtifactFactory:
    """Artifacts of one trained network, and what measures them.

    Args:
        config: The job's.
        data: That the network was trained on.
        since: What was made before this time, in nanoseconds, is made anew.
        network: With its weights, in eval mode.
        source: Where these come from, as `make_artifact` takes it.
        notes: What records say of them.
    """

    config: DictConfig
    data: ImageData
    since: int
    network: nn.Module
    source: dict[str, Any]
    notes: dict[str, str]

    def named(self, method: Method) -> Callable[[Engine], str]:
        """The folder name of an engine's artifact, before it is made."""
        return lambda engine: artifact_name(method, self.network, self.data, engine.spec, self.source)

    def artifact(self, method: Method, engine: Engine) -> Artifact:
        """Found or, unless this is phase=measure, made. Errors: UserError where it is missing."""
        root = Path(self.config.outputs) / "artifacts"
        name = self.named(method)(engine)
        if self.config.phase == "measure" and not (root / name).exists():
            raise UserError(
                f"{root / name} was not made yet. Run the same command with phase=compress, by the same code, or phase=all."
            )
        since = 0 if self.config.phase == "measure" else self.since
        return make_artifact(method, self.network, self.data, engine.spec, self.source, root, since)

    def candidate(self, method: Method, engine: Engine, persistent: bool = False) -> Candidate:
        engine.check_machine()
        batch, threads = self.config.batch_size, self.config.threads
        artifact = engine.lower(self.artifact(method, engine), batch, threads, self.since)
        return Candidate(artifact, engine, batch, threads, limits_of(self.config), persistent, self.since)


def prepare(config: DictConfig) -> ArtifactFactory:
    """The data and the trained network."""
    data = open_data(config)
    return ArtifactFactory(config, data, forced_since(config), *trained_network(config, data))


def trained_network(config: DictConfig, data: ImageData) -> tuple[nn.Module, dict[str, Any], dict[str, str]]:
    """The network with the weights that `checkpoint` names, where they come from, and what records say of them.

    The data is normalised as the baseline's was. Errors: UserError where there is no baseline and none is to be trained.
    """
    torch.manual_seed(config.seed)
    network = build_network(config.model).eval()
    source = {"model": config.model.id, "network": OmegaConf.to_container(config.model, resolve=True)}
    if config.checkpoint == "random":
        return network, {**source, "weights": "random", "seed": config.seed}, {}
    path = Path(config.checkpoint)
    if config.checkpoint != "auto" and not path.is_dir():
        check_unseen(config, data, None)
        load_weights(network, read_weights(path), str(path))
        return network, {**source, "weights": file_digest(path)}, {}
    baseline = newest_baseline(config, data) if config.checkpoint == "auto" else Baseline.read(path)
    baseline.check()
    check_unseen(config, data, baseline.data)
    load_weights(network, read_weights(baseline.weights), str(baseline.folder))
    data.normalise_like(baseline.data)
    return network, {**source, "weights": baseline.weights_digest}, seed_note(config, baseline)


def seed_note(config: DictConfig, baseline: Baseline) -> dict[str, str]:
    """Told on screen too, since rows of several seeds look like as many networks."""
    if config.checkpoint != "auto" or baseline.seed == config.seed:
        return {}
    note = f"trained with seed {baseline.seed}: {config.outputs}/baselines has none of seed {config.seed}"
    print(f"  network {note}", flush=True)
    return {"network": note}


def check_unseen(config: DictConfig, data: ImageData, trained_on: DataSpec | None) -> None:
    """Errors: UserError where accuracy is asked for on a validation part that the weights may have been trained on."""
    accuracy = config.measure.get("accuracy")
    if accuracy and accuracy.part != "test" and (trained_on is None or trained_on.digest != data.open().digest):
        weights = "no baseline of train.py" if trained_on is None else "a baseline of other images"
        raise UserError(
            f"measure.accuracy.part={accuracy.part}, but whether these weights were trained on images of the validation part is unknown: "
            f"they are {weights}. Give measure.accuracy.part=test."
        )


def newest_baseline(config: DictConfig, data: ImageData) -> Baseline:
    """The newest baseline of this model and data, of this seed if there is one; trained now where there is none and `train_missing`
    allows it."""
    found = find_baseline(Path(config.outputs) / "baselines", config.model.id, data.spec.name, config.seed)
    if found:
        return found
    wanted = config.train_missing is True or (config.train_missing == "auto" and data.trains_in_seconds)
    if wanted and config.phase != "measure":
        from qexp.jobs.train import train_baseline  # and with it Lightning, which takes seconds to import

        return train_baseline(config, data, anew=False)
    raise UserError(
        f"There is no trained {config.model.id} for the data {data.spec.name!r} in {config.outputs}/baselines. Train it with\n"
        f"  {same_choices('train.py')}\nor give checkpoint=FILE, checkpoint=random (size and latency only) or train_missing=true."
    )
