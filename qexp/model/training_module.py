"""The LightningModule that trains a network."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from inspect import signature
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from qexp.types import UserError, digest, nearest


def length_of(scheduler: Callable[..., Any], steps: int) -> dict[str, int]:
    """Make the argument that tells a scheduler the number of steps, for which PyTorch's schedulers have several names.

    Args:
        scheduler: The recipe's partial function.
        steps: Steps of the training.

    Returns:
        The argument by its name, or nothing if the recipe already has it.
    """
    name = next((name for name in ("T_max", "total_iters") if name in signature(scheduler).parameters), "total_steps")
    return {} if name in getattr(scheduler, "keywords", {}) else {name: steps}


def _fitting(network: nn.Module, pattern: str) -> list[nn.Parameter]:
    """The parameters whose names fit a pattern, of which there is at least one."""
    found = [parameter for name, parameter in network.named_parameters() if fnmatchcase(name, pattern)]
    if not found:
        known = (name for name, _ in network.named_parameters())
        raise UserError(f"recipe.frozen: no parameter has a name like {pattern}. {nearest(pattern, known)}")
    return found


class TrainingModule(LightningModule):
    """Trains a network on cross entropy.

    Args:
        network: The network.
        num_classes: Number K of classes.
        optimizer: The recipe's partial function, which takes the parameters.
        scheduler: The recipe's partial function, which takes the optimizer, or None for a constant learning rate.
        scheduler_per_step: Whether the scheduler advances at every step and is told how many there are, instead of
            advancing at every epoch.
        label_smoothing: Share of the target that is spread over all classes.
        channels_last: Whether weights and activations are in channels_last memory order.
        seed: Seed of the random numbers that are drawn during a step, such as dropout's.
        frozen: Patterns of the names of parameters that are trained in the first epochs only.
        frozen_from: The epoch, counted from 0, from which on they are not.

    Raises:
        UserError: A pattern fits no parameter, or the epoch is no whole number from 0.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        optimizer: Callable[..., torch.optim.Optimizer],
        scheduler: Callable[..., Any] | None,
        scheduler_per_step: bool,
        label_smoothing: float,
        channels_last: bool,
        seed: int,
        frozen: Sequence[str],
        frozen_from: int,
    ):
        super().__init__()
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(memory_format=self.memory_format)
        self.optimizer, self.scheduler = optimizer, scheduler
        self.scheduler_per_step, self.label_smoothing, self.seed = scheduler_per_step, label_smoothing, seed
        self.frozen = [parameter for pattern in frozen for parameter in _fitting(network, pattern)]
        if not isinstance(frozen_from, int) or frozen_from < 0:
            raise UserError(f"recipe.frozen_from is {frozen_from!r}; give an epoch, counted from 0.")
        self.frozen_from = frozen_from
        self.train_seconds = 0.0  # over all parts of an interrupted training
        self.val_top1 = math.nan  # after the last epoch
        metrics = MetricCollection({
            "top1": MulticlassAccuracy(num_classes, top_k=1, average="micro"),
            "top5": MulticlassAccuracy(num_classes, top_k=min(5, num_classes), average="micro"),
        })  # fmt: skip
        self.val_metrics, self.test_metrics = (metrics.clone(f"{s}_") for s in ("val", "test"))

    def forward(self, x: Tensor) -> Tensor:
        """x[B,C,H,W] -> logits[B,K] float32, in channels_last memory order unless the network has views against it."""
        try:
            returned = self.network(x.contiguous(memory_format=self.memory_format))
            # In training, some networks return the logits of auxiliary heads behind their own.
            return (returned[0] if isinstance(returned, (tuple, list)) else returned).float()
        except RuntimeError as error:
            if self.memory_format == torch.contiguous_format or "view size is not compatible" not in str(error):
                raise
        self.memory_format = torch.contiguous_format
        self.network.to(memory_format=self.memory_format)
        return self.forward(x)

    def on_fit_start(self) -> None:
        if self.frozen and self.trainer.world_size > 1:  # all processes would wait for gradients that do not come
            raise UserError(
                "recipe.frozen needs a training in one process. Give recipe.frozen=[] or trainer.devices=1."
            )

    def on_train_epoch_start(self) -> None:
        self._epoch_started = time.perf_counter()
        for parameter in self.frozen if self.current_epoch >= self.frozen_from else []:
            parameter.requires_grad_(False).grad = None  # optimizers leave out what has no gradient

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        # Dropout draws from the global generator. Seeded by the step, a resumed run draws what an undisturbed one does.
        torch.manual_seed(int(digest([self.seed, self.global_step, self.global_rank])[:15], 16))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, labels = batch
        logits = self(x)
        loss = self.loss(x, logits, labels)
        # torchmetrics would take several per cent of the steps of a small network.
        found = logits.detach().topk(min(5, logits.shape[1])).indices
        hits = (found == (labels if labels.ndim == 1 else labels.argmax(1))[:, None]).float()
        values = {"train_loss": loss, "train_top1": hits[:, 0].mean(), "train_top5": hits.sum(1).mean()}
        self.log_dict(values, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(labels))
        return loss

    def loss(self, x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of logits[B,K] for labels[B], or for the share [B,K] of each class in a mixed image."""
        return nn.functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def on_train_epoch_end(self) -> None:
        loss = float(self.trainer.callback_metrics["train_loss"])
        if not math.isfinite(loss):
            raise UserError(
                f"The training diverged: its loss is {loss} after epoch {self.current_epoch + 1}. "
                "Lower recipe.optimizer.lr."
            )
        self.train_seconds += time.perf_counter() - self._epoch_started
        self.val_top1 = float(self.trainer.callback_metrics.get("val_top1", math.nan))  # not there without validation

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint.update(train_seconds=self.train_seconds, val_top1=self.val_top1)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.train_seconds, self.val_top1 = checkpoint["train_seconds"], checkpoint["val_top1"]

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self._evaluate(batch, "val", self.val_metrics)

    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self._evaluate(batch, "test", self.test_metrics)

    def _evaluate(self, batch: tuple[Tensor, Tensor], part: str, metrics: MetricCollection) -> None:
        x, labels = batch
        logits = self(x)
        metrics.update(logits, labels)
        self.log_dict(metrics, on_step=False, on_epoch=True, prog_bar=part == "val", batch_size=len(labels))
        loss = nn.functional.cross_entropy(logits, labels)
        self.log(f"{part}_loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(labels))

    def parameter_groups(self) -> Any:
        """The parameters for the optimizer: all of them, or groups of them with options of their own."""
        return self.network.parameters()

    def configure_optimizers(self) -> Any:
        try:
            optimizer = self.optimizer(self.parameter_groups())
            if self.scheduler is None:
                return optimizer
            steps = int(self.trainer.estimated_stepping_batches)
            scheduler = self.scheduler(
                optimizer, **(length_of(self.scheduler, steps) if self.scheduler_per_step else {})
            )
        except (TypeError, ValueError, ZeroDivisionError) as error:  # OneCycleLR divides by the steps of each phase
            total = self.trainer.estimated_stepping_batches
            raise UserError(
                f"No optimizer or scheduler of this recipe for {total} steps: {error}. See conf/recipe/."
            ) from error
        return [optimizer], [{"scheduler": scheduler, "interval": "step" if self.scheduler_per_step else "epoch"}]
