"""What an artifact says of each layer for people to read: ranges, scales and the errors of rounding, as layers.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

from torch import Tensor

from qexp.method.quantize.numerics import sqnr_db
from qexp.types import Layer

LAYERS_FILE = "layers.csv"
# Columns after the layer's own; empty where a method has no such number.
# low, high: of the values themselves; clip_low, clip_high: of what integers can say; scale and zero_point: one, or the least and the
# largest of several; clipped: share of values beyond the integers; sqnr_db: signal to quantisation noise ratio in decibels.
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
# output_sqnr_db: of the layer's result against the fp32 network's, with all that is rounded before it.
COLUMNS = (*(f"weight_{name}" for name in OF_A_TENSOR), *(f"input_{name}" for name in OF_A_TENSOR), "output_sqnr_db")

Statistics = Mapping[str, float]


def layers_csv(layers: tuple[Layer, ...], statistics: Mapping[str, Statistics]) -> str:
    """One row per layer; facts: by layer and column."""
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
    """Of a layer whose weight became `rounded`, with one or several scales and zero points where these are integers."""
    statistics = {**weight_range(weight), "weight_sqnr_db": sqnr_db(weight, rounded)}
    for name, values in (("scale", scale), ("zero_point", zero_point)):
        if values is not None:
            statistics |= {f"weight_{name}_min": float(values.min()), f"weight_{name}_max": float(values.max())}
    return statistics
