"""Fine-tuning of a compressed network, which several methods share.

It has a recipe of its own, may distil from the uncompressed network, goes on after a kill, and keeps the epoch that is
best by validation.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import seed_everything
from torch import Tensor, nn

from qexp.artifact import EngineSpec
from qexp.data.base import ImageData
from qexp.data.loaders import Loaders
from qexp.files import made_since
from qexp.keys import key
from qexp.method.base import Method
from qexp.model.base import identity_of, load_weights, read_weights
from qexp.model.trainer import best_and_last, keeping_freed_memory, make_trainer, trainer_options
from qexp.model.training_module import TrainingModule
from qexp.types import UserError


class FineTuningModule(TrainingModule):
    """Trains a network with an uncompressed one as its teacher (Hinton et al., 2015).

    Methods extend `parameter_groups` and `after_step`. A method that compresses the network during training says by
    `complete` whether the network has reached its final form, so that it may be kept.

    Args:
        trained: The network to train.
        teacher: The uncompressed network, which is copied if the recipe distils.
        num_classes: Number K of classes.
        recipe: How to train.
    """

    def __init__(self, trained: nn.Module, teacher: nn.Module, num_classes: int, recipe: FineTuning):
        super().__init__(
            trained, num_classes, instantiate(recipe.optimizer), instantiate(recipe.scheduler),
            recipe.scheduler_per_step, recipe.label_smoothing, recipe.channels_last, recipe.seed, frozen=(),
            frozen_from=0,
        )  # fmt: skip
        self.distillation, self.temperature = recipe.distillation, recipe.temperature
        # In a list, since a submodule would be trained and written into checkpoints.
        self.teacher = [copy.deepcopy(teacher).eval().requires_grad_(False)] if recipe.distillation else []

    def after_step(self) -> None:
        """Restore what must be true of the weights, whatever the optimizer did to them. Called after each batch."""

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        self.after_step()

    def loss(self, x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Mix the loss on the labels with the Kullback-Leibler divergence from the teacher.

        The divergence is multiplied by temperature², since its gradients are smaller by that factor.
        """
        wanted = super().loss(x, logits, labels)
        if not self.teacher:
            return wanted
        with torch.no_grad():
            taught = self.teacher[0].to(x.device)(x).float()
        given, asked = (nn.functional.log_softmax(scores / self.temperature, 1) for scores in (logits, taught))
        distance = nn.functional.kl_div(given, asked, reduction="batchmean", log_target=True) * self.temperature**2
        return (1 - self.distillation) * wanted + self.distillation * distance


@dataclass(frozen=True)
class FineTuning:
    """How a method fine-tunes the network that it has changed: the node `recipe` of its config. A session trains.

    Its options are explained in conf/method/_fine_tuning.yaml. The optimizer and the scheduler are configs of partial
    functions, as in conf/recipe. The trainer's accelerator says where the training runs, and does not count as deciding
    its result.

    Raises:
        UserError: A number is out of range.
    """

    epochs: int
    batch_size: int
    label_smoothing: float
    channels_last: bool
    optimizer: DictConfig
    scheduler: DictConfig | None
    scheduler_per_step: bool
    distillation: float
    temperature: float
    seed: int
    trainer: DictConfig
    exact: bool

    def __post_init__(self) -> None:
        if not 0 <= self.distillation <= 1 or self.temperature <= 0:
            raise UserError(
                f"distillation={self.distillation}, temperature={self.temperature}: a share lies between 0 and 1, and "
                "a temperature above 0."
            )
        for name, least in (("epochs", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise UserError(
                    f"method.recipe.{name}={value} is out of range; give a whole number of at least {least}."
                )

    @property
    def precision(self) -> str:
        """Lightning's precision. An exact recipe trains in fp32 where the trainer would choose by the hardware."""
        return "32-true" if self.exact and self.trainer["precision"] == "auto" else self.trainer["precision"]

    @property
    def options(self) -> dict[str, Any]:
        """What decides the result of a training, as plain values."""
        decisive = {name: value for name, value in vars(self).items() if name not in ("trainer", "exact")}
        plain: Any = OmegaConf.to_container(OmegaConf.create(decisive), resolve=True)
        return {**plain, "precision": self.precision, "trainer": trainer_options(self.trainer)}

    def shortened(self, epochs: int) -> FineTuning:
        """The same recipe with another number of epochs.

        A scheduler that is told the number of steps runs its whole course. One whose length is fixed in the recipe does
        not, and the learning rate stays near its highest.
        """
        return replace(self, epochs=epochs)

    @contextmanager
    def session(
        self, folder: Path, network: nn.Module, data: ImageData, method: Method, engine_spec: EngineSpec | None = None
    ) -> Iterator[FineTuningSession]:
        """A context that keeps what must outlive a kill, until the block ends without an error.

        Args:
            folder: The artifact's folder, while it is made. What is kept lies beside it, since the folder itself does
                not survive a kill.
            network: The network that the method was given. Training starts from its weights.
            data: The images to train on.
            method: The method that trains. It has the teacher to distil from, if that is not `network`, and says since
                when checkpoints count. Older ones are deleted.
            engine_spec: What the engine executes, if that changes what is trained.

        Yields:
            The session, which trains.
        """
        teacher = method.teacher
        name = key(
            "fine-tuning",
            code=[data] if identity_of(network) else [network, data],
            identity=identity_of(network),
            method=method,
            weights=weights_digest(network),
            teacher=None if teacher is None else weights_digest(teacher),
            spec=data.spec,
            engine_spec=engine_spec,
            calibration_images=data.calibration_images,
            training=data.training_options,
        )
        place = folder.parent / f".training-{name[:16]}"
        if not made_since(place, method.since):
            shutil.rmtree(place, ignore_errors=True)
        yield FineTuningSession(self, place, network if teacher is None else teacher, data)
        shutil.rmtree(place, ignore_errors=True)


@dataclass(frozen=True)
class FineTuningSession:
    """The training of one network, which goes on where a kill interrupted it.

    Attributes:
        recipe: How to train.
        folder: The folder of its checkpoints, and of whatever else its method keeps.
        teacher: The uncompressed network to distil from.
        data: The images to train on.
    """

    recipe: FineTuning
    folder: Path
    teacher: nn.Module
    data: ImageData

    def train(self, trained: nn.Module, module: Callable[..., FineTuningModule] = FineTuningModule) -> None:
        """Fine-tune a network, going on from the last whole epoch, and keep the epoch that is best by validation.

        If memory runs out, each step is split into batches half as large whose gradients are added up, so that the
        effective batch size stays about the same.

        Args:
            trained: The network to train. Afterwards it is on the CPU and in eval mode.
            module: What trains it: a subclass of `FineTuningModule`, or a partial of one.

        Raises:
            UserError: The training diverged.
        """
        if self.recipe.epochs:
            with keeping_freed_memory():
                self._train(trained, module)
        # Training may have changed the memory order, and torch.export would warn about that when it saves.
        trained.cpu().to(memory_format=torch.contiguous_format).eval()

    def _train(self, trained: nn.Module, module: Callable[..., FineTuningModule]) -> None:
        trained.train()
        start = copy.deepcopy(trained.state_dict())
        parts = 1
        while True:
            batch = -(-self.recipe.batch_size // parts)
            try:
                best = self._fit(trained, module, batch, parts)
                break
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or batch == 1:
                    raise
                parts *= 2
                trained.load_state_dict(start)
                images = -(-self.recipe.batch_size // parts)
                print(f"  out of memory: going on with each step in {parts} batches of {images} images", flush=True)
        trained.cpu()
        load_weights(trained, read_weights(best), str(best))

    def _fit(self, trained: nn.Module, module: Callable[..., FineTuningModule], batch: int, parts: int) -> Path:
        """Train in steps of `parts` batches of `batch` images each, and return the checkpoint of the best epoch."""
        recipe, last = self.recipe, self.folder / "last.ckpt"
        seed_everything(recipe.seed, verbose=False)
        training = module(trained, self.teacher, self.data.spec.num_classes, recipe)
        best, newest = best_and_last(self.folder)
        options: dict[str, Any] = {
            **recipe.trainer,  # type: ignore[dict-item]
            "max_epochs": recipe.epochs,
            "precision": recipe.precision,
        }
        trainer = make_trainer(**options, callbacks=[best, newest], logger=False, accumulate_grad_batches=parts)
        loaders = Loaders(self.data, batch)
        trainer.fit(training, loaders, ckpt_path=str(last) if last.exists() else None, weights_only=True)
        return Path(best.best_model_path)


def weights_digest(network: nn.Module) -> str:
    """The SHA-256 digest (hex) of a network's parameters and buffers, with their names, types and shapes."""
    made = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        made.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        made.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return made.hexdigest()


def out_of_memory(error: BaseException) -> bool:
    """Whether the error says that torch could not allocate a tensor, on a GPU or on the CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
