"""Static post-training quantisation, with ranges from calibration images and weights rounded to the nearest value."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.fx import GraphModule

from qexp.artifact import EngineSpec
from qexp.data.base import ImageData
from qexp.method.base import Compressed, Method
from qexp.method.quantize.accuracy_control import GAINS_FILE, controlled
from qexp.method.quantize.base import Quantization
from qexp.method.quantize.decompositions import KERNELS
from qexp.method.quantize.remedies import remedied
from qexp.types import Unsupported, UserError


class Static(Quantization):
    """Calibrates and converts. If 8 bits change the network too much, a remedy is looked for in between.

    With `accept_points`, layers go back to floating point until no more top-1 is lost (accuracy_control.py).

    Raises:
        UserError: An option is unknown or out of range.
    """

    name = "static"

    def __init__(
        self, remedy: str, accept_points: float | None, accept_images: int | None, torchscript: Method | None,
        **common: Any,
    ):  # fmt: skip
        super().__init__(**common)
        if remedy not in ("auto", "none"):
            raise UserError(f"There is no remedy {remedy!r}. Give method.remedy=auto or none.")
        if accept_points is not None and not (isinstance(accept_points, int | float) and 0 <= accept_points < 100):
            raise UserError(
                f"method.accept_points={accept_points} is out of range; give percentage points of top-1 from 0 to 100, "
                "or null to accept any loss."
            )
        if accept_images is not None and (not isinstance(accept_images, int) or accept_images < 1):
            raise UserError(
                f"method.accept_images={accept_images} is out of range; give a whole number of at least 1, or null for "
                "all validation images."
            )
        self.remedy, self.accept_points, self.accept_images = remedy, accept_points, accept_images
        # Classic kernels have no layers in floating point.
        self.torchscript = torchscript if accept_points is None else None

    @property
    def looks_for_remedy(self) -> bool:
        """Whether nobody has chosen a remedy, and the bits are such that no loss is expected."""
        return self.remedy == "auto" and self.for_engines and not (self.equalisation or self.bias_correction)

    def resolve(self, engine_spec: EngineSpec) -> EngineSpec:
        if self.accept_points is not None and engine_spec.placement not in KERNELS:
            raise Unsupported(
                "method.accept_points leaves layers in floating point, which needs an engine with integer kernels of "
                "its own, such as onnxruntime"
            )
        return super().resolve(engine_spec)

    def compress(
        self, network: nn.Module, data: ImageData, engine_spec: EngineSpec, folder: Path, source: dict[str, Any]
    ) -> Compressed:
        """Call `apply`, without a remedy for random weights, whose logits mean nothing.

        Raises:
            UserError: Accuracy is to be held, but it means nothing for these weights or images.
        """
        chosen = copy.copy(self)
        if source["weights"] == "random":
            chosen.remedy = "none"
        if self.accept_points is not None and (source["weights"] == "random" or data.spec.pretend):
            raise UserError(
                f"method.accept_points={self.accept_points} needs trained weights and real images: without them, "
                "accuracy means nothing. Leave it null."
            )
        return chosen.apply(network, data, engine_spec, folder)

    def apply(self, network: nn.Module, data: ImageData, engine_spec: EngineSpec, folder: Path) -> Compressed:
        if self.accept_points is None:
            prepared, notes = self.quantized(network, data, engine_spec)
            return replace(self.finish(prepared, copy.deepcopy(prepared), network, data, folder), notes=notes)

        def quantized(layer_bits: dict[str, int]) -> tuple[GraphModule, dict[str, str]]:
            chosen = copy.copy(self)  # artifacts are known by the options of this one, so they must not change
            chosen.layer_bits = {**self.layer_bits, **layer_bits}
            return chosen.quantized(network, data, engine_spec)

        held = controlled(self, quantized, self.accept_points, self.accept_images, network, data, engine_spec)
        made = self.finish(held.graph, copy.deepcopy(held.graph), network, data, folder)
        (folder / GAINS_FILE).write_text(held.table)
        count = len(held.floats)
        label = self.label(engine_spec) + f", {count} float layer" * bool(count) + "s" * (count > 1)
        return replace(made, files=(*made.files, GAINS_FILE), notes=held.notes, label=label)

    def quantized(
        self, network: nn.Module, data: ImageData, engine_spec: EngineSpec
    ) -> tuple[GraphModule, dict[str, str]]:
        """The calibrated graph with the remedy that it needs, and notes for the record."""
        prepared = self.calibrated(network, data, engine_spec)
        return remedied(self, prepared, network, data, engine_spec) if self.looks_for_remedy else (prepared, {})
