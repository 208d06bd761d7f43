"""Train a network on a dataset: `python train.py model=resnet20 data=folder data.root=...` writes a Baseline folder."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint

from qexp.data.base import ImageData, open_data
from qexp.model.base import Classifier, build_network, load_weights, make_trainer, read_weights
from qexp.model.baseline import Baseline
from qexp.types import command_line, digest, versions


def train_baseline(config: DictConfig, data: ImageData) -> Baseline:
    """Train `config.model` on `data`, going on from the last whole epoch of an interrupted training of the same config.

    A finished baseline of the same config is returned as it is, unless `force`. The validation part chooses the epoch;
    the test part is used once, on that choice.
    """
    parts = {part: OmegaConf.to_container(config[part], resolve=True) for part in ("model", "recipe")}
    plan = {**parts, "data": data.open().digest, "augmentation": OmegaConf.to_container(config.data.augmentation), "seed": config.seed}
    name = f"{config.model.id}-{data.spec.name}-seed{config.seed}-{digest(plan)[:8]}".replace("/", "_")
    folder = Path(config.outputs) / "baselines" / name
    if config.force:
        shutil.rmtree(folder, ignore_errors=True)
    if (folder / "manifest.json").exists():
        return Baseline.read(folder)

    seed_everything(config.seed, verbose=False)
    recipe = instantiate(config.recipe)
    module = Classifier(
        build_network(config.model), data.spec.num_classes, recipe.optimizer, recipe.scheduler, recipe.scheduler_per_step,
        recipe.label_smoothing, recipe.channels_last, config.seed,
    )  # fmt: skip
    best = ModelCheckpoint(folder, "best", monitor="val_top1", mode="max", save_last=True, enable_version_counter=False)
    logger = instantiate(config.tracking).training_logger(folder, f"{config.model.id} · train · {data.spec.name}", plan)
    trainer = make_trainer(**config.trainer, callbacks=[best], logger=logger)
    last = folder / "last.ckpt"
    trainer.fit(module, data, ckpt_path=str(last) if last.exists() else None, weights_only=False)

    load_weights(module.network, read_weights(Path(best.best_model_path)), best.best_model_path)
    tested = trainer.test(module, data, verbose=False)[0]
    baseline = Baseline(
        folder=folder, model=parts["model"], data=data.spec, recipe=parts["recipe"], seed=config.seed,
        metrics={"val_top1": float(best.best_model_score), **tested}, created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command_line(), seconds=round(module.train_seconds, 1), versions=versions("torch", "torchvision", "pytorch-lightning"),
    )  # fmt: skip
    if trainer.is_global_zero:
        baseline = baseline.write(module.network.state_dict())
        for checkpoint in folder.glob("*.ckpt"):
            checkpoint.unlink()
    return baseline


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> None:
    data = open_data(config)
    baseline = train_baseline(config, data)
    print(baseline)


if __name__ == "__main__":
    main()
