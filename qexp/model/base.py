"""Networks from their config, the LightningModule that trains them, and weights from and to disk."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import LightningModule, Trainer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from qexp.types import UserError, digest


def build_network(config: DictConfig) -> nn.Module:
    """The network of a `model` config: its `_target_` called with its other keys; `id` only names it.

    Errors: UserError for a missing or unimportable `_target_` and for arguments it does not take.
    """
    if OmegaConf.is_missing(config, "_target_"):
        raise UserError("No model was chosen. Give model=NAME (a file of conf/model/) or model._target_=my.module.Net.")
    arguments = {str(k): v for k, v in OmegaConf.to_container(config, resolve=True).items() if k != "id"}  # type: ignore[union-attr]
    try:
        network = instantiate(arguments)
    except UserError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise cause from error
        raise UserError(f"Cannot build the model {config.id}: {error}") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"model._target_={config._target_} gave a {type(network).__name__}, not a torch.nn.Module.")
    return network


class Classifier(LightningModule):
    """Trains a network on cross entropy; optimizer and scheduler are the recipe's partial functions."""

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        optimizer: Callable[..., torch.optim.Optimizer],
        scheduler: Callable[..., Any] | None = None,
        scheduler_per_step: bool = False,
        label_smoothing: float = 0.0,
        channels_last: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        order = torch.channels_last if channels_last else torch.contiguous_format
        self.network, self.optimizer, self.scheduler = network.to(memory_format=order), optimizer, scheduler  # type: ignore[call-overload]
        self.scheduler_per_step, self.label_smoothing, self.seed = scheduler_per_step, label_smoothing, seed
        self.train_seconds = 0.0  # over all parts of an interrupted training
        metrics = MetricCollection({
            "top1": MulticlassAccuracy(num_classes, top_k=1, average="micro"),
            "top5": MulticlassAccuracy(num_classes, top_k=min(5, num_classes), average="micro"),
        })  # fmt: skip
        self.train_metrics, self.val_metrics, self.test_metrics = (metrics.clone(f"{s}_") for s in ("train", "val", "test"))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def on_train_epoch_start(self) -> None:
        # Dropout draws from the global generator: tied to the epoch, a resumed run draws what an undisturbed one does.
        torch.manual_seed(int(digest([self.seed, self.current_epoch, self.global_rank])[:15], 16))
        self._epoch_started = time.perf_counter()

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, labels = batch
        logits = self.network(x).float()
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        self.train_metrics.update(logits.detach(), labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def on_train_epoch_end(self) -> None:
        self.log_dict(self.train_metrics.compute())
        self.train_metrics.reset()
        self.train_seconds += time.perf_counter() - self._epoch_started

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["train_seconds"] = self.train_seconds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.train_seconds = checkpoint["train_seconds"]

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self._evaluate(batch, "val", self.val_metrics)

    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self._evaluate(batch, "test", self.test_metrics)

    def _evaluate(self, batch: tuple[Tensor, Tensor], part: str, metrics: MetricCollection) -> None:
        x, labels = batch
        logits = self.network(x).float()
        metrics.update(logits, labels)
        self.log_dict(metrics, on_step=False, on_epoch=True, prog_bar=part == "val", batch_size=len(labels))
        loss = nn.functional.cross_entropy(logits, labels)
        self.log(f"{part}_loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(labels))

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.network.parameters())
        if self.scheduler is None:
            return optimizer
        steps = {"total_steps": int(self.trainer.estimated_stepping_batches)} if self.scheduler_per_step else {}
        scheduler = self.scheduler(optimizer, **steps)
        return [optimizer], [{"scheduler": scheduler, "interval": "step" if self.scheduler_per_step else "epoch"}]


def read_weights(file: Path) -> dict[str, Tensor]:
    """The state dict in a `.safetensors` file or a torch checkpoint, read without unpickling code.

    `{"state_dict": ...}` and `{"model": ...}` wrappers and the prefixes of DataParallel (`module.`), Lightning (`network.`)
    and torch.compile (`_orig_mod.`) are removed. Errors: UserError that names the file and what is wrong with it.
    """
    if not file.is_file():
        raise UserError(f"There is no checkpoint file {file}. Give checkpoint=auto, random, a folder of train.py or a file.")
    try:
        loaded: Any = load_file(file) if file.suffix == ".safetensors" else torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"The checkpoint {file} is truncated or no checkpoint: {error}") from error
    except Exception as error:  # torch reports what weights_only refuses as an UnpicklingError
        raise UserError(f"The checkpoint {file} holds more than tensors, or is damaged, and was not loaded: {str(error)[:300]}") from error
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise UserError(f"The checkpoint {file} is not a state dict (names to tensors).")
    for prefix in ("module.", "network.", "_orig_mod."):
        if all(name.startswith(prefix) for name in loaded):
            loaded = {name.removeprefix(prefix): tensor for name, tensor in loaded.items()}
    return loaded


def load_weights(network: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Put `weights` into the network. Errors: UserError listing every missing, unexpected or misshapen entry."""
    own = network.state_dict()
    # BatchNorm's step counter came late to PyTorch and plays no part in inference.
    missing = [k for k in own if k not in weights and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in weights if k not in own]
    misshapen = [
        f"{k}: {tuple(weights[k].shape)} in the file, {tuple(own[k].shape)} in the model"
        for k in own
        if k in weights and weights[k].shape != own[k].shape
    ]
    if missing or unexpected or misshapen:
        listed = "\n".join(
            f"  {title} ({len(names)}): {', '.join(names)}"
            for title, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
            if names
        )
        raise UserError(f"The weights in {source} do not fit this model:\n{listed}\nChoose the model and data they were trained with.")
    network.load_state_dict(weights, strict=False)


def make_trainer(accelerator: str, precision: str, **options: Any) -> Trainer:
    """A Lightning Trainer; precision `auto` is bf16 autocast where the hardware computes in bf16, else fp32."""
    if precision == "auto":
        on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
        fast = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else torch.cpu._is_avx512_bf16_supported()
        precision = "bf16-mixed" if fast else "32-true"
    return Trainer(accelerator=accelerator, precision=precision, **options)  # type: ignore[arg-type]
