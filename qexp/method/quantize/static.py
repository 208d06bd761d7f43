"""Static post-training quantisation, with ranges from calibration images and weights rounded to the nearest value."""

from __future__ import annotations

from typing import Any

from qexp.method.base import Method
from qexp.method.quantize.base import Quantization


class Static(Quantization):
    """Calibrates and converts, with nothing in between."""

    name = "static"

    def __init__(self, torchscript: Method | None, **common: Any):
        super().__init__(**common)
        self.torchscript = torchscript
