"""The job of train.py: trains a network, which becomes a baseline."""

from __future__ import annotations

import contextlib
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from qexp.cli import same_choices
from qexp.data.base import ImageData
from qexp.data.images import training_images
from qexp.data.loaders import Loaders
from qexp.files import file_digest
from qexp.jobs.given import NOTHING, Given
from qexp.jobs.preprocessing import adopt_preprocessing
from qexp.keys import key
from qexp.model.base import load_weights, read_weights, start_from
from qexp.model.baseline import Baseline, check_space, weights_file
from qexp.model.checkpoint import load_checkpoint
from qexp.model.pretrained import note_of, wanted, weights_digest, without_pretrained
from qexp.model.trainer import (
    be_quiet,
    best_and_last,
    keeping_freed_memory,
    leave_one_process,
    make_trainer,
    trainer_options,
)
from qexp.model.training_module import TrainingModule
from qexp.types import UserError, command_line, nearest, versions

KEPT = ("best", "last")
STARTED_FROM = 1024  # images that layers may take their initial weights from


def train_baseline(config: DictConfig, data: ImageData, anew: bool, given: Given = NOTHING) -> Baseline:
    """Train a network, or go on from the last whole epoch of an interrupted training of the same config.

    One epoch is kept, the one with the best validation accuracy or the last, and only that is tested. With several
    processes (DDP), only the first returns.

    Args:
        config: Config of the job.
        data: Data to train on.
        anew: Whether to train again if there is a baseline of the same config, which is returned otherwise.
        given: Objects that stand in for nodes of the config.

    Raises:
        UserError: Nothing can be learned from the data, an option is wrong, or the network or the outputs do not fit.
    """
    be_quiet()
    spec = data.open()
    if spec.pretend:
        raise UserError(
            f"data={spec.name} has pretend images, from which nothing can be learned. "
            "Choose real data, such as data=digits."
        )
    if config.recipe.epochs < 1:
        raise UserError(f"recipe.epochs is {config.recipe.epochs}; it must be at least 1.")
    if config.recipe.keep not in KEPT:
        raise UserError(f"recipe.keep={config.recipe.keep}: {nearest(str(config.recipe.keep), KEPT)}")
    model = without_pretrained(config.model) if config.init else config.model
    torch.manual_seed(config.seed)  # of a head for other classes than those of pretrained weights
    network = given.network(model, spec)  # raises its errors before anything is written
    start = weights_file(config.init) if config.init else None
    if start and (told := load_checkpoint(network, start)):
        print(f"weights of {start}: {told}", flush=True)
    if wanted(model) and not given.has(model):
        print(f"weights of {model.id}: {note_of(network)}", flush=True)
    plan: dict[str, Any] = {
        "model": OmegaConf.to_container(model, resolve=True),
        "recipe": OmegaConf.to_container(config.recipe, resolve=True),
        "data": spec.digest,
        "augmentation": OmegaConf.to_container(config.data.augmentation),
        "seed": config.seed,
    }
    if start:
        plan["init"] = file_digest(start)
    elif wanted(model):
        plan["init"] = weights_digest(network)
    plan |= given.identity(model, network.eval(), data) | given.training_identity(model, network, data)
    name = f"{config.model.id}-{spec.name}-seed{config.seed}-{baseline_key(config, data, plan)[:8]}".replace("/", "_")
    folder = Path(config.outputs) / "baselines" / name
    with alone_with(Path(config.outputs) / "cache" / "training" / f"{name}.lock"):
        if anew and getattr(rank_zero_only, "rank", 0) == 0:
            shutil.rmtree(folder, ignore_errors=True)
        if (folder / "manifest.json").exists():
            print(f"Already trained; force=true trains again: {folder}")
            return Baseline.read(folder)
        return train(config, data, folder, plan, network.state_dict() if "init" in plan else None, given)


def baseline_key(config: DictConfig, data: ImageData, plan: dict[str, Any]) -> str:
    """Key of what `train` makes of a plan, with the images, the code and the options of the trainer."""
    # What stands in for nodes is in the plan by its graph. How graphs are made must not train networks anew.
    return key(
        "baseline", code=[data, "qexp.jobs.train", "qexp.model.outputs"], without=["qexp.jobs.given"], plan=plan,
        spec=data.open(), training=data.training_options, trainer=trainer_options(config.trainer),
        epochs=config.trainer.max_epochs, precision=config.trainer.precision,
    )  # fmt: skip


def alone_with(lock: Path) -> contextlib.AbstractContextManager[Any]:
    """Make parallel jobs wait until one has trained the baseline, but not the other processes of one training."""
    if getattr(rank_zero_only, "rank", 0) != 0:
        return contextlib.nullcontext()
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"Cannot write to {lock.parent}: {error.strerror}. Choose another folder with outputs=FOLDER."
        ) from error
    return FileLock(lock)


def train(
    config: DictConfig, data: ImageData, folder: Path, plan: dict[str, Any], weights: dict[str, Tensor] | None,
    given: Given,
) -> Baseline:  # fmt: skip
    """Train the network by a plan, and write the baseline.

    Args:
        config: Config of the job.
        data: Data to train on.
        folder: Folder of the baseline.
        plan: What the baseline is made from.
        weights: Initial weights by name, or None for random ones.
        given: Objects that stand in for nodes of the config.
    """
    data.prepare_training()
    spec = data.spec
    seed_everything(config.seed, verbose=False)
    network, recipe = given.network(without_pretrained(config.model), spec), instantiate(config.recipe)
    check_space(folder, network)
    if weights:
        load_weights(network, weights, str(config.init or config.model.id))
    else:
        start_from(network, lambda: training_images(data, STARTED_FROM)[:])
    loaders = Loaders(data, config.recipe.batch_size)
    module = TrainingModule(
        network, spec.num_classes, recipe.optimizer, recipe.scheduler, recipe.scheduler_per_step,
        recipe.label_smoothing, recipe.channels_last, config.seed, recipe.frozen,
        recipe.frozen_from,
    )  # fmt: skip
    best, newest = best_and_last(folder)
    run_name, source = f"{config.model.id} · train · {spec.name}", str(config.data.get("root") or spec.name)
    logger = instantiate(config.tracking).training_logger(folder, run_name, plan, spec, source)
    trainer = make_trainer(**config.trainer, callbacks=[best, newest], logger=logger)
    last = folder / "last.ckpt"
    announce(config, data, trainer, f"{folder}{' (going on)' if last.exists() else ''}")
    with keeping_freed_memory():
        trainer.fit(module, loaders, ckpt_path=str(last) if last.exists() else None, weights_only=True)
    leave_one_process(trainer)

    kept, score = (best, best.best_model_score) if recipe.keep == "best" else (newest, module.val_top1)
    assert score is not None  # every epoch is validated
    load_weights(module.network, read_weights(Path(kept.best_model_path)), kept.best_model_path)
    tester = make_trainer(
        config.trainer.accelerator, config.trainer.precision, devices=1, logger=logger, enable_progress_bar=False
    )
    tested = tester.test(module, loaders, verbose=False)[0]
    baseline = Baseline(
        folder=folder, model=plan["model"], data=spec, recipe=plan["recipe"], seed=config.seed,
        metrics={"val_top1": float(score), **tested},
        created=datetime.now(UTC).isoformat(timespec="milliseconds"), command=given.call or command_line(),
        seconds=round(module.train_seconds, 1), versions=versions("qexp", "torch", "torchvision", "pytorch-lightning"),
    ).write(module.network.state_dict())  # fmt: skip
    for checkpoint in folder.glob("*.ckpt"):
        checkpoint.unlink()
    return baseline


@rank_zero_only
def announce(config: DictConfig, data: ImageData, trainer: Trainer, place: str) -> None:
    recipe = f"recipe {HydraConfig.get().runtime.choices.get('recipe')}, " if HydraConfig.initialized() else ""
    images = f"{len(data.train_indices)} + {len(data.validation_indices)} + {len(data.splits['test'].labels)} images"
    print(
        f"{config.model.id} on {data.spec.name} ({images} to train, validate, test): "
        f"{recipe}{trainer.max_epochs} epochs, "
        f"{trainer.world_size} x {trainer.strategy.root_device.type} {trainer.precision}, into {place}",
        flush=True,
    )


def main(config: DictConfig, given: Given = NOTHING) -> Baseline:
    adopt_preprocessing(config, trains=True)
    baseline = train_baseline(config, given.open(config), config.force, given)
    values = [f"{name} {baseline.metrics[name]:.4f}" for name in ("val_top1", "test_top1", "test_top5")]
    print("  ".join([*values, f"{baseline.seconds:.0f} s", str(baseline.folder)]))
    groups = r"model(?!\.pretrained)|data|outputs"  # the baseline has taken the place of the pretrained weights
    if not given.call:
        print(f"Compress it: {same_choices('compress', groups)}")
    return baseline
