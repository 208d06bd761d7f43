"""Fine-tuning of a compressed network, which methods share: own recipe, distillation, going on after a kill, best epoch by validation."""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import seed_everything
from torch import Tensor, nn

from qexp.data.base import ImageData
from qexp.data.loaders import Loaders
from qexp.files import made_since
from qexp.keys import key
from qexp.method.base import Method
from qexp.model.base import load_weights, read_weights
from qexp.model.trainer import best_and_last, keeping_freed_memory, make_trainer, trainer_options
from qexp.model.training_module import TrainingModule
from qexp.types import EngineSpec, UserError


class FineTuningModule(TrainingModule):
    """The network being trained, with an uncompressed one as its teacher. Methods add to `parameter_groups`, and to `after_step`; those
    that compress it on the way say by `complete` whether it is what it shall become, and may be kept.

    distillation: share of the loss that asks for the teacher's logits instead of the labels (Hinton et al., 2015), at `temperature`.
    """

    def __init__(
        self,
        trained: nn.Module,
        teacher: nn.Module,
        num_classes: int,
        recipe: Any,
        distillation: float,
        temperature: float,
        seed: int,
    ):
        super().__init__(
            trained, num_classes, recipe["optimizer"], recipe["scheduler"], recipe["scheduler_per_step"], recipe["label_smoothing"],
            recipe["channels_last"], seed,
        )  # fmt: skip
        self.distillation, self.temperature = distillation, temperature
        # Not a submodule: it is neither trained nor written into checkpoints.
        self.teacher = [copy.deepcopy(teacher).eval().requires_grad_(False)] if distillation else []

    def after_step(self) -> None:
        """Called after each step of the optimizer, for what must hold of the weights whatever it did to them."""

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        self.after_step()

    def loss(self, x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        wanted = super().loss(x, logits, labels)
        if not self.teacher:
            return wanted
        with torch.no_grad():
            taught = self.teacher[0].to(x.device)(x).float()
        given, asked = (nn.functional.log_softmax(scores / self.temperature, 1) for scores in (logits, taught))
        distance = nn.functional.kl_div(given, asked, reduction="batchmean", log_target=True) * self.temperature**2
        return (1 - self.distillation) * wanted + self.distillation * distance


class FineTuning:
    """recipe: epochs (0: none), batch_size, optimizer and scheduler; trainer: options of Lightning's Trainer; distillation, temperature:
    as of `Student`; exact: whether precision `auto` is fp32, for networks that are deployed in the very numbers that they are trained in.

    Errors: UserError for shares beyond 0 to 1 and a temperature that is not above 0.
    """

    def __init__(
        self, recipe: DictConfig, trainer: DictConfig, distillation: float = 0.0, temperature: float = 4.0, seed: int = 0,
        exact: bool = False,
    ):  # fmt: skip
        if not 0 <= distillation <= 1 or temperature <= 0:
            raise UserError(
                f"distillation={distillation}, temperature={temperature}: a share lies between 0 and 1, and a temperature above 0."
            )
        self.recipe: dict[str, Any] = OmegaConf.to_container(recipe, resolve=True)  # type: ignore[assignment]
        epochs = self.recipe.get("epochs")
        if not isinstance(epochs, int) or epochs < 0:
            raise UserError(f"The recipe's epochs are {epochs}; give a whole number, 0 for no fine-tuning.")
        self.trainer = trainer  # where it is trained, which does not belong to what is trained
        self.precision = "32-true" if exact and trainer["precision"] == "auto" else trainer["precision"]
        self.distillation, self.temperature, self.seed = distillation, temperature, seed

    @property
    def options(self) -> dict[str, Any]:
        """What decides the result."""
        decisive = ("recipe", "precision", "distillation", "temperature", "seed")
        return {**{name: getattr(self, name) for name in decisive}, "trainer": trainer_options(self.trainer)}

    def train(
        self,
        trained: nn.Module,
        teacher: nn.Module,
        data: ImageData,
        checkpoints: Path,
        student: Callable[..., FineTuningModule] = FineTuningModule,
    ) -> None:
        """Fine-tune `trained`, going on from the last whole epoch in the folder `checkpoints`, and keep the best epoch by validation.

        student: what trains it, a subclass of `Student` or a partial of one. Where memory runs out, steps are split into halves, and
        the effective batch stays. Afterwards `trained` is on the CPU in eval mode; the caller deletes `checkpoints`.
        """
        if self.recipe["epochs"]:
            with keeping_freed_memory():
                self._train(trained, teacher, data, checkpoints, student)
        # Training may have changed the order of memory, which torch.export warns of when it saves.
        trained.cpu().to(memory_format=torch.contiguous_format).eval()

    def _train(
        self,
        trained: nn.Module,
        teacher: nn.Module,
        data: ImageData,
        checkpoints: Path,
        student: Callable[..., FineTuningModule],
    ) -> None:
        recipe: Any = instantiate(self.recipe)
        trained.train()
        start = copy.deepcopy(trained.state_dict())
        whole, parts = data.batch_size, 1
        while True:
            seed_everything(self.seed, verbose=False)
            module = student(
                trained, teacher, num_classes=data.spec.num_classes, recipe=recipe, distillation=self.distillation,
                temperature=self.temperature, seed=self.seed,
            )  # fmt: skip
            best, newest = best_and_last(checkpoints)
            options: dict[str, Any] = {**self.trainer, "max_epochs": recipe["epochs"], "precision": self.precision}  # type: ignore[dict-item]
            trainer = make_trainer(**options, callbacks=[best, newest], logger=False, accumulate_grad_batches=parts)
            data.batch_size = -(-recipe["batch_size"] // parts)
            try:
                last = checkpoints / "last.ckpt"
                trainer.fit(module, Loaders(data), ckpt_path=str(last) if last.exists() else None, weights_only=True)
                break
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or data.batch_size == 1:
                    raise
                parts *= 2
                trained.load_state_dict(start)
                print(
                    f"  out of memory: going on with {parts} steps of {-(-recipe['batch_size'] // parts)} images each",
                    flush=True,
                )
            finally:
                data.batch_size = whole
        trained.cpu()
        load_weights(trained, read_weights(Path(best.best_model_path)), best.best_model_path)


def training_folder(
    folder: Path, method: Method, network: nn.Module, data: ImageData, engine_spec: EngineSpec | None = None
) -> Path:
    """Where the checkpoints of a method's training lie: beside the artifact, since they outlive a kill.

    Args:
        folder: That of the artifact while it is made.
        method: Which trains, and says since when checkpoints count: older ones are deleted.
        network: From whose weights it starts.
        data: That it trains on.
        engine_spec: What the engine wants, where that changes what is trained.
    """
    teacher = method.teacher
    name = key(
        "fine-tuning", code=[network, data], method=method, weights=weights_digest(network), spec=data.spec,
        engine_spec=engine_spec, teacher=None if teacher is None else weights_digest(teacher), calibration_images=data.calibration_images,
        training=data.training_options,
    )  # fmt: skip
    found = folder.parent / f".training-{name[:16]}"
    if not made_since(found, method.since):
        shutil.rmtree(found, ignore_errors=True)
    return found


def weights_digest(network: nn.Module) -> str:
    """SHA-256 (hex) over the bytes of a network's parameters and buffers, with their names, types and shapes."""
    made = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        made.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        made.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return made.hexdigest()


def out_of_memory(error: BaseException) -> bool:
    """Whether torch could not allocate a tensor, on a GPU or on the CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
