"""Static post-training quantisation, with ranges from calibration images and weights rounded to the nearest value."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from qexp.artifact import EngineSpec
from qexp.data.base import ImageData
from qexp.method.base import Compressed, Method
from qexp.method.quantize.base import Quantization
from qexp.method.quantize.remedies import remedied
from qexp.types import UserError


class Static(Quantization):
    """Calibrates and converts. If 8 bits change the network too much, a remedy is looked for in between.

    Raises:
        UserError: An option is unknown or out of range.
    """

    name = "static"

    def __init__(self, remedy: str, torchscript: Method | None, **common: Any):
        super().__init__(**common)
        if remedy not in ("auto", "none"):
            raise UserError(f"There is no remedy {remedy!r}. Give method.remedy=auto or none.")
        self.remedy, self.torchscript = remedy, torchscript

    @property
    def looks_for_remedy(self) -> bool:
        """Whether nobody has chosen a remedy, and the bits are such that no loss is expected."""
        return self.remedy == "auto" and self.for_engines and not (self.equalisation or self.bias_correction)

    def compress(
        self, network: nn.Module, data: ImageData, engine_spec: EngineSpec, folder: Path, source: dict[str, Any]
    ) -> Compressed:
        """Call `apply`, without a remedy for random weights, whose logits mean nothing."""
        chosen = copy.copy(self)
        if source["weights"] == "random":
            chosen.remedy = "none"
        return chosen.apply(network, data, engine_spec, folder)

    def apply(self, network: nn.Module, data: ImageData, engine_spec: EngineSpec, folder: Path) -> Compressed:
        prepared, notes = self.calibrated(network, data, engine_spec), dict[str, str]()
        if self.looks_for_remedy:
            prepared, notes = remedied(self, prepared, network, data, engine_spec)
        made = self.finish(prepared, copy.deepcopy(prepared), network, data, folder)
        return replace(made, notes=notes)
