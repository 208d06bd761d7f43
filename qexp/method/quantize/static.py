"""Static post-training quantisation: ranges from calibration images, weights rounded to the nearest value."""

from __future__ import annotations

from qexp.method.quantize.base import Quantization


class Static(Quantization):
    name = "static"
