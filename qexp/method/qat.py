"""Quantisation-aware training: the prepared graph is fine-tuned with rounding in place, and its scales learn too."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import seed_everything
from torch import Tensor, nn
from torch.fx import GraphModule

from qexp.data.base import ImageData
from qexp.data.loaders import Loaders
from qexp.method.base import Compressed, example_input
from qexp.method.fake_quantize import LEARNING, quantizers
from qexp.method.qat_graph import ConvNorm, hand_over, learn_ranges, sizes, trainable
from qexp.method.quantization import Quantization
from qexp.model.base import load_weights, read_weights
from qexp.model.classifier import Classifier
from qexp.model.trainer import best_and_last, keeping_freed_memory, make_trainer
from qexp.types import UserError, Wants, digest, nearest


class QAT(Quantization):
    """activations, weights: how their scales learn, `lsq` (Esser et al., 2020), `moving_average` (Jacob et al., 2018) or, of
    activations only, `pact` (Choi et al., 2018); distillation: share of the loss that asks for the fp32 network's logits instead of
    the labels (Hinton et al., 2015), at `temperature`; freeze_norms: share of the epochs after which batch norms keep their statistics;
    recipe: epochs, batch_size, optimizer and scheduler of the fine-tuning; trainer: options of Lightning's Trainer, precision `auto`
    being fp32 here.
    """

    name = "qat"

    def __init__(
        self, recipe: DictConfig, trainer: DictConfig, activations: str = "lsq", weights: str = "lsq", distillation: float = 0.0,
        temperature: float = 4.0, freeze_norms: float = 0.75, seed: int = 0, **common: Any,
    ):  # fmt: skip
        tracked = {"observer": activations, "weight_observer": weights}  # a moving average goes on from itself
        super().__init__(**{**common, **{name: kind for name, kind in tracked.items() if kind == "moving_average"}})
        for kind in (activations, weights):
            if kind not in LEARNING:
                raise UserError(f"Scales cannot learn by {kind!r}. {nearest(kind, LEARNING)}")
        if weights == "pact":
            raise UserError("method.weights=pact: PACT learns where activations are clipped. Give lsq or moving_average for weights.")
        if not 0 <= distillation <= 1 or temperature <= 0 or not 0 <= freeze_norms <= 1:
            raise UserError(
                f"distillation={distillation}, temperature={temperature}, freeze_norms={freeze_norms}: shares lie between 0 and 1, "
                "and a temperature above 0."
            )
        self.recipe: dict[str, Any] = OmegaConf.to_container(recipe, resolve=True)  # type: ignore[assignment]
        self.trainer = trainer  # where it is trained, which does not belong to what is trained
        # bf16 moves values past the middle between two integers: the network that is deployed would not be the one that was trained.
        self.precision = "32-true" if trainer["precision"] == "auto" else trainer["precision"]
        self.activations, self.weights, self.distillation, self.temperature = activations, weights, distillation, temperature
        self.freeze_norms, self.seed = freeze_norms, seed

    def apply(self, network: nn.Module, data: ImageData, wants: Wants, folder: Path) -> Compressed:
        prepared = self.calibrated(network, data, wants)
        exact = copy.deepcopy(prepared)
        trained = trainable(prepared, network, data)
        learn_ranges(trained, self.activations, self.weights, sizes(trained, example_input(data, 1)))
        key = digest([self.options, str(wants), data.spec.digest, {k: v.double().sum().item() for k, v in network.state_dict().items()}])
        checkpoints = folder.parent / f".training-{key[:16]}"  # outlives a kill, unlike `folder`
        with keeping_freed_memory():
            self.train(trained, network, data, checkpoints)
        hand_over(trained, prepared)
        shutil.rmtree(checkpoints)
        return self.finish(prepared, exact, network, data, folder)

    def train(self, trained: GraphModule, network: nn.Module, data: ImageData, checkpoints: Path) -> None:
        """Fine-tune, going on from the last whole epoch of an interrupted training, and keep the best epoch by validation."""
        recipe: Any = instantiate(self.recipe)
        trained.train()
        start = copy.deepcopy(trained.state_dict())
        whole, parts = data.batch_size, 1
        while True:
            seed_everything(self.seed, verbose=False)
            module = Student(
                trained, network, data.spec.num_classes, recipe, self.distillation, self.temperature, self.freeze_norms, self.seed
            )
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
                print(f"  out of memory: going on with {parts} steps of {-(-recipe['batch_size'] // parts)} images each", flush=True)
            finally:
                data.batch_size = whole
        trained.cpu().eval()
        load_weights(trained, read_weights(Path(best.best_model_path)), best.best_model_path)


def out_of_memory(error: BaseException) -> bool:
    """Whether torch could not allocate a tensor, on a GPU or on the CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


class Student(Classifier):
    """The network being trained, with the fp32 one as its teacher."""

    def __init__(
        self, trained: GraphModule, teacher: nn.Module, num_classes: int, recipe: Any, distillation: float, temperature: float,
        freeze_norms: float, seed: int,
    ):  # fmt: skip
        super().__init__(
            trained, num_classes, recipe["optimizer"], recipe["scheduler"], recipe["scheduler_per_step"], recipe["label_smoothing"],
            recipe["channels_last"], seed,
        )  # fmt: skip
        self.distillation, self.temperature, self.freeze_norms = distillation, temperature, freeze_norms
        # Not a submodule: it is neither trained nor written into checkpoints.
        self.teacher = [copy.deepcopy(teacher).eval().requires_grad_(False)] if distillation else []

    def parameter_groups(self) -> Any:
        """Scales apart, since weight decay would shrink them."""
        scales = [quantizer.scale for quantizer in quantizers(self.network).values() if isinstance(quantizer.scale, nn.Parameter)]
        known = {id(scale) for scale in scales}
        others = [parameter for parameter in self.network.parameters() if id(parameter) not in known]
        return [{"params": others}, {"params": scales, "weight_decay": 0.0}] if scales else others

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        frozen = self.current_epoch >= self.freeze_norms * (self.trainer.max_epochs or 1)
        for module in self.network.modules():
            if isinstance(module, ConvNorm):
                module.frozen = frozen

    def loss(self, x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        wanted = super().loss(x, logits, labels)
        if not self.teacher:
            return wanted
        with torch.no_grad():
            taught = self.teacher[0].to(x.device)(x).float()
        given, asked = (nn.functional.log_softmax(scores / self.temperature, 1) for scores in (logits, taught))
        distance = nn.functional.kl_div(given, asked, reduction="batchmean", log_target=True) * self.temperature**2
        return (1 - self.distillation) * wanted + self.distillation * distance
