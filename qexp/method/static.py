"""Static post-training quantisation: ranges from calibration images, weights rounded to the nearest value."""

from __future__ import annotations

from qexp.method.quantization import Quantization


class Static(Quantization):
    name = "static"
