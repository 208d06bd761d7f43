"""The file layers.csv, which tells readers of an artifact the ranges, scales and rounding errors of each layer."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

from torch import Tensor

from qexp.artifact import Layer
from qexp.method.quantize.numerics import sqnr_db

LAYERS_FILE = "layers.csv"
# Columns that follow the description of the layer. They are empty where a method has no such number.
# - low, high: the range of the values themselves
# - clip_low, clip_high: the range that the integers can represent
# - scale_min, scale_max, zero_point_min, zero_point_max: the smallest and the largest, the same if there is only one
# - clipped: the share of values that lie outside the range of the integers
# - sqnr_db: the signal-to-quantisation-noise ratio in decibels
OF_A_TENSOR = (
    "low",
    "high",
    "clip_low",
    "clip_high",
    "scale_min",
    "scale_max",
    "zero_point_min",
    "zero_point_max",
    "clipped",
    "sqnr_db",
)
# output_sqnr_db compares the layer's result with the one in the fp32 network, with all rounding before it in effect.
COLUMNS = (*(f"weight_{name}" for name in OF_A_TENSOR), *(f"input_{name}" for name in OF_A_TENSOR), "output_sqnr_db")

Statistics = Mapping[str, float]


def layers_csv(layers: tuple[Layer, ...], statistics: Mapping[str, Statistics]) -> str:
    """Write a table with one row per layer.

    Args:
        layers: The layers, each with its formats and sizes.
        statistics: Numbers by layer and by column. Columns without a number stay empty.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["layer", "kind", "parameters", "macs", "weight", "activation", *COLUMNS])
    for layer in layers:
        known = statistics.get(layer.name, {})
        numbers = [f"{known[column]:.6g}" if column in known else "" for column in COLUMNS]
        rows.writerow([layer.name, layer.kind, layer.parameters, layer.macs, layer.weight, layer.activation, *numbers])
    return text.getvalue()


def weight_range(weight: Tensor) -> dict[str, float]:
    return {"weight_low": float(weight.min()), "weight_high": float(weight.max())}


def rounded_weight(
    weight: Tensor, rounded: Tensor, scale: Tensor | None = None, zero_point: Tensor | None = None
) -> dict[str, float]:
    """Statistics of a layer whose weight was rounded.

    Args:
        weight: The weight before rounding.
        rounded: The values that it was rounded to.
        scale: One or several scales, if the weight became integers.
        zero_point: One or several zero points, if the weight became integers.
    """
    statistics = {**weight_range(weight), "weight_sqnr_db": sqnr_db(weight, rounded)}
    for name, values in (("scale", scale), ("zero_point", zero_point)):
        if values is not None:
            statistics |= {f"weight_{name}_min": float(values.min()), f"weight_{name}_max": float(values.max())}
    return statistics
