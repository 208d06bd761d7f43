"""Quantisation-aware training, which fine-tunes the prepared graph with rounding in effect. Scales learn too."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from qexp.artifact import EngineSpec
from qexp.data.base import ImageData
from qexp.data.images import Images
from qexp.method.base import Compressed
from qexp.method.fine_tuning import FineTuning, FineTuningModule
from qexp.method.graph import example_input
from qexp.method.quantize.base import Quantization
from qexp.method.quantize.fake_quantize import LEARNING, quantizers
from qexp.method.quantize.qat_graph import ConvNorm, estimate_norms, hand_over, learn_ranges, sizes, trainable
from qexp.types import UserError, nearest


class QAT(Quantization):
    """Fine-tunes weights and scales together.

    Scales learn by LSQ (Esser et al., 2020), as moving averages (Jacob et al., 2018) or, for activations only, by PACT
    (Choi et al., 2018).

    Raises:
        UserError: An option is unknown or out of range.
    """

    name = "qat"
    trains = True

    def __init__(self, recipe: FineTuning, activations: str, weights: str, freeze_norms: float, **common: Any):
        # A scale that learns as a moving average has to start from one, whatever observer was chosen.
        tracked = {"observer": activations, "weight_observer": weights}
        super().__init__(**{**common, **{name: kind for name, kind in tracked.items() if kind == "moving_average"}})
        for kind in (activations, weights):
            if kind not in LEARNING:
                raise UserError(f"Scales cannot learn by {kind!r}. {nearest(kind, LEARNING)}")
        if weights == "pact":
            raise UserError(
                "method.weights=pact: PACT learns where activations are clipped. Give lsq or moving_average for "
                "weights."
            )
        if not 0 <= freeze_norms <= 1:
            raise UserError(f"freeze_norms={freeze_norms} is out of range; give a share of the epochs between 0 and 1.")
        self.recipe, self.activations, self.weights, self.freeze_norms = recipe, activations, weights, freeze_norms

    def apply(self, network: nn.Module, data: ImageData, engine_spec: EngineSpec, folder: Path) -> Compressed:
        prepared = self.calibrated(network, data, engine_spec)
        exact = copy.deepcopy(prepared)
        trained = trainable(prepared, network, data)
        learn_ranges(trained, self.activations, self.weights, sizes(trained, example_input(data, 1)))
        module = partial(
            QATModule, freeze_norms=self.freeze_norms, images=data.calibration(), batch=self.calibration_batch
        )
        with self.recipe.session(folder, network, data, self, engine_spec) as session:
            session.train(trained, module)
            hand_over(trained, prepared)
        return self.finish(prepared, exact, network, data, folder)


class QATModule(FineTuningModule):
    """Trains a graph whose quantizers round.

    Args:
        arguments: Those of `FineTuningModule`.
        freeze_norms: Share of the epochs after which batch norms keep their statistics. Until then, statistics are
            estimated anew before each validation.
        images: Normalised images x[N,C,H,W] to estimate the statistics with.
        batch: How many of the images are shown at once.
    """

    def __init__(self, *arguments: Any, freeze_norms: float, images: Images, batch: int):
        super().__init__(*arguments)
        self.freeze_norms, self.images, self.batch = freeze_norms, images, batch

    def parameter_groups(self) -> Any:
        """Put scales into a group without weight decay, which would shrink them."""
        scales = [
            quantizer.scale
            for quantizer in quantizers(self.network).values()
            if isinstance(quantizer.scale, nn.Parameter)
        ]
        known = {id(scale) for scale in scales}
        others = [parameter for parameter in self.network.parameters() if id(parameter) not in known]
        return [{"params": others}, {"params": scales, "weight_decay": 0.0}] if scales else others

    @property
    def norms(self) -> list[ConvNorm]:
        return [module for module in self.network.modules() if isinstance(module, ConvNorm)]

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        for norm in self.norms:
            norm.frozen = self.current_epoch >= self.freeze_norms * (self.trainer.max_epochs or 1)

    def after_step(self) -> None:
        for norm in self.norms:
            norm.keep_sign()

    def on_validation_start(self) -> None:
        if not any(norm.frozen for norm in self.norms):
            estimate_norms(self.network, self.images, self.batch)
