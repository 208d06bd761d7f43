"""Loads or trains the network of a job, and makes its artifacts and the candidates that are measured."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from qexp.artifact import Artifact
from qexp.cli import same_choices
from qexp.data.base import ImageData
from qexp.engine.base import Engine
from qexp.files import file_digest
from qexp.jobs.comparison import limits_of
from qexp.jobs.given import NOTHING, Given
from qexp.jobs.preprocessing import adopt_preprocessing, given_options
from qexp.jobs.run import forced_since
from qexp.measure.candidate import Candidate
from qexp.measure.device import HERE, Device
from qexp.method.artifacts import artifact_name, make_artifact
from qexp.method.base import Method
from qexp.model.base import IMAGENET_HINT, bake, load_weights, of_imagenet, read_weights
from qexp.model.baseline import Baseline, find_baseline
from qexp.model.checkpoint import load_checkpoint
from qexp.model.pretrained import note_of, wanted, weights_digest, without_pretrained
from qexp.progress import doing
from qexp.types import DataSpec, UserError

ASSUMED = "preprocessing"  # the note that says which preprocessing was assumed
REFUSE, ACCEPT = "refuse", "accept"  # values of validation_seen
SEEN_NOTE = (
    "these weights may have been trained on the validation images, so that losses on them may seem too small; test "
    "images are not concerned"
)
PREPARING = {"resize", "resize_to", "interpolation", "orient", "mean", "std", "pixel_range", "transform"}  # options


@dataclass(frozen=True)
class ArtifactFactory:
    """Makes artifacts of one trained network, and candidates of them.

    Attributes:
        config: Config of the job.
        data: The data that the network was trained on.
        since: What was made before this time, in nanoseconds, is made anew.
        network: The network with its weights, in eval mode.
        source: Where the weights come from, as `make_artifact` takes it.
        notes: What records say of the weights.
        given: Objects that stand in for nodes of the config.
    """

    config: DictConfig
    data: ImageData
    since: int
    network: nn.Module
    source: dict[str, Any]
    notes: dict[str, str]
    given: Given = NOTHING

    def source_for(self, method: Method) -> dict[str, Any]:
        """What identifies the network for a method."""
        if not method.trains:
            return self.source
        return {**self.source, **self.given.training_identity(self.config.model, self.network, self.data)}

    def named(self, method: Method) -> Callable[[Engine], str]:
        """A function that gives the folder name of an engine's artifact, which need not be made for that."""
        source = self.source_for(method)
        return lambda engine: artifact_name(method, self.network, self.data, engine.spec, source)

    def artifact(self, method: Method, engine: Engine) -> Artifact:
        """Find the artifact, or make it unless this is phase=measure.

        Raises:
            UserError: This is phase=measure, and the artifact was not made.
        """
        root = Path(self.config.outputs) / "artifacts"
        name = self.named(method)(engine)
        if self.config.phase == "measure" and not (root / name).exists():
            raise UserError(
                f"{root / name} was not made yet. "
                "Run the same command with phase=compress, by the same code, or phase=all."
            )
        since = 0 if self.config.phase == "measure" else self.since
        # Trainings show a bar of their own.
        shown = nullcontext() if method.trains else doing(f"Making {method.name} for {engine.name}")
        with shown:
            return make_artifact(method, self.network, self.data, engine.spec, self.source_for(method), root, since)

    def candidate(
        self, method: Method, engine: Engine, persistent: bool = False, device: Device = HERE,
        threads: int | None = None,
    ) -> Candidate:  # fmt: skip
        """The artifact of the method on an engine of a device, lowered for it.

        Args:
            method: The method.
            engine: The engine.
            persistent: Whether its child may be shared with others on the same engine.
            device: Where it runs.
            threads: Threads of the engine, or None for those of the config.

        Raises:
            Unsupported: The engine does not run here, or has no kernels for the artifact.
            UserError: The artifact is missing or cannot be made.
        """
        device.check(engine)
        batch, threads = self.config.batch_size, threads or self.config.threads
        artifact = self.artifact(method, engine)
        with doing(f"Preparing it for {engine.name}"):
            artifact = engine.lower(artifact, batch, threads, self.since)
        return Candidate(artifact, engine, batch, threads, limits_of(self.config), persistent, self.since, device)


def prepare(config: DictConfig, given: Given = NOTHING) -> ArtifactFactory:
    """Open the data and load the trained network of a job, training it first if need be."""
    adopt_preprocessing(config)
    data = given.open(config)
    network, source, notes = trained_network(config, data, given)
    source = {**source, **given.identity(config.model, network, data)}
    if data.generates:
        source = {**source, "calibration": data.generate_from(network, source)}
        notes = {**notes, "calibration": source["calibration"].rpartition(" ")[0] + ", made from the batch norms"}
        print(f"  calibration: {notes['calibration']}", flush=True)
    return ArtifactFactory(config, data, forced_since(config), network, source, notes, given)


def trained_network(
    config: DictConfig, data: ImageData, given: Given = NOTHING
) -> tuple[nn.Module, dict[str, Any], dict[str, str]]:
    """Make the network with its weights: those that `checkpoint` names, or the pretrained ones of its library.

    The data is normalised like that of the baseline.

    Returns:
        The network, where its weights come from, and what records say of them.

    Raises:
        UserError: There is no baseline and none is to be trained, or the weights or the data do not fit.
    """
    torch.manual_seed(config.seed)
    pretrained = wanted(config.model) and config.checkpoint == "auto" and config.train_missing is not True
    model = config.model if pretrained else without_pretrained(config.model)
    network = given.network(model, data.open()).eval()
    source = {"model": model.id, "network": OmegaConf.to_container(model, resolve=True)}
    if pretrained:
        unseen = check_unseen(config, data, None)
        notes = assumption(data, "the network") if given.has(model) else {"weights": note_of(network)}
        notes |= unseen
        for name, note in notes.items():
            print(f"  {name} of {model.id}: {note}", flush=True)
        if of_imagenet(data.spec):
            print(f"  {IMAGENET_HINT}", flush=True)
        weights = f"pretrained {weights_digest(network)}"
        return bake(network), {**source, "weights": weights}, notes
    if config.checkpoint == "random":
        return bake(network), {**source, "weights": "random", "seed": config.seed}, {}
    path = Path(config.checkpoint)
    if config.checkpoint != "auto" and not path.is_dir():
        unseen = check_unseen(config, data, None)
        place = config.checkpoint_key
        told = load_checkpoint(network, path, place, config.trust_checkpoint)
        notes = {**({"weights": told} if told else {}), **assumption(data), **unseen}
        for name, note in notes.items():
            print(f"  {name} of {path.name}: {note}", flush=True)
        weights = file_digest(path) + (f" {place}" if place else "")
        return bake(network), {**source, "weights": weights}, notes
    baseline = newest_baseline(config, data, given) if config.checkpoint == "auto" else Baseline.read(path)
    baseline.check()
    unseen = check_unseen(config, data, baseline.data)
    load_weights(network, read_weights(baseline.weights), str(baseline.folder))
    notes = {**data.normalise_like(baseline.data), **seed_note(config, baseline), **unseen}
    for name, note in notes.items():
        print(f"  {name}: {note}", flush=True)
    return bake(network), {**source, "weights": baseline.weights_digest}, notes


def assumption(data: ImageData, silent: str = "the file") -> dict[str, str]:
    """Note how images are prepared, unless the command line or the images said so.

    Args:
        data: The images.
        silent: What does not say it.
    """
    if PREPARING & given_options() or data.spec.preprocessing.transform:
        return {}
    return {ASSUMED: f"assumed, since {silent} does not say it: {data.spec.preprocessing.steps}"}


def seed_note(config: DictConfig, baseline: Baseline) -> dict[str, str]:
    """Note that the baseline was trained with another seed.

    Otherwise, the rows of a sweep over seeds would seem to be of as many networks.
    """
    if config.checkpoint != "auto" or baseline.seed == config.seed:
        return {}
    return {"network": f"trained with seed {baseline.seed}: {config.outputs}/baselines has none of seed {config.seed}"}


def check_unseen(config: DictConfig, data: ImageData, trained_on: DataSpec | None) -> dict[str, str]:
    """Check that the validation part is known to be unseen, if it is to judge anything.

    Returns:
        A note for the record if that is not known, and accepted.

    Raises:
        UserError: It is not known, and not accepted.
    """
    if config.validation_seen not in (REFUSE, ACCEPT):
        raise UserError(f"There is no validation_seen={config.validation_seen}. Give {REFUSE} or {ACCEPT}.")
    asked = judged_on_validation(config)
    if not asked or (trained_on is not None and trained_on.digest == data.open().digest):
        return {}
    if config.validation_seen == ACCEPT:
        return {"validation": SEEN_NOTE}
    weights = "no baseline of train.py" if trained_on is None else "a baseline of other images"
    option, instead = asked
    raise UserError(
        f"{option}, but whether these weights were trained on images of the validation part is unknown: "
        f"they are {weights}. Give {instead}, or validation_seen={ACCEPT}, which the record then says."
    )


def judged_on_validation(config: DictConfig) -> tuple[str, str] | None:
    """The option that asks for accuracy on the validation part, and what to give instead. None if there is none."""
    accuracy = config.measure.get("accuracy")
    if accuracy and accuracy.part != "test":
        return f"measure.accuracy.part={accuracy.part}", "measure.accuracy.part=test"
    nodes = {"method": config.method, **{f"method.stages.{n}": s for n, s in config.method.get("stages", {}).items()}}
    for name, node in nodes.items():
        if node.get("accept_points") is not None:
            return f"{name}.accept_points={node.accept_points}", f"{name}.accept_points=null"
    return None


def newest_baseline(config: DictConfig, data: ImageData, given: Given) -> Baseline:
    """Find the newest baseline of this model and data, preferably of this seed.

    If there is none and `train_missing` allows it, one is trained.

    Raises:
        UserError: There is no baseline, and none is to be trained.
    """
    found = find_baseline(Path(config.outputs) / "baselines", config.model.id, data.spec.name, config.seed)
    if found:
        return found
    wanted = config.train_missing is True or (config.train_missing == "auto" and data.trains_in_seconds)
    if wanted and config.phase != "measure":
        from qexp.jobs.train import train_baseline  # imports Lightning, which takes seconds

        return train_baseline(config, data, anew=False, given=given)
    raise UserError(
        f"There is no trained {config.model.id} for the data {data.spec.name!r} in {config.outputs}/baselines. "
        f"Train it with\n  {same_choices('train')}\n"
        "or give checkpoint=FILE, checkpoint=random (size and latency only) or train_missing=true."
    )
