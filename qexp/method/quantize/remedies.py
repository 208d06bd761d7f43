"""Remedies for networks that 8 bits change too much, chosen on calibration images.

The measure is the signal-to-noise ratio of the logits against those in floating point. It needs no labels, and tells
remedies apart where a few hundred images leave no difference in accuracy.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from qexp.artifact import EngineSpec
from qexp.data.base import ImageData
from qexp.data.images import Images, in_steps
from qexp.method.quantize.corrections import correct_bias
from qexp.method.quantize.fake_quantize import in_floating_point
from qexp.method.quantize.numerics import sqnr_db
from qexp.method.quantize.smoothing import smooth

if TYPE_CHECKING:
    from qexp.method.quantize.base import Quantization

# From here on, nothing is tried. Trained ResNets that lose 0.1 points to plain int8 keep 31 to 33 dB, and
# EfficientNet-Lite0, which loses more, keeps 20.
ENOUGH_DB = 25.0
GAIN_DB = 1.0  # by which a remedy has to be better than none
IMAGES = 128  # that remedies are tried on, at most
JUDGE = 4  # one out of so many judges, and the others calibrate
JUDGES = IMAGES // JUDGE


@dataclass(frozen=True)
class Remedy:
    """Smoothing before calibration (smoothing.py), bias correction after it (corrections.py), both, or nothing."""

    smoothing: bool = False
    bias_correction: bool = False

    def __str__(self) -> str:
        return " and ".join(filter(None, ["smoothing" * self.smoothing, "bias correction" * self.bias_correction]))


def remedied(
    method: Quantization, plain: GraphModule, network: nn.Module, data: ImageData, engine_spec: EngineSpec
) -> tuple[GraphModule, dict[str, str]]:
    """Keep a calibrated graph if rounding changes its logits little. Otherwise choose what changes them less.

    Remedies are judged on other calibration images than those that they are made with. The chosen one is then made with
    all of them.

    Args:
        method: The method that calibrated the graph.
        plain: The graph, calibrated without any remedy.
        network: The network that it was made from.
        data: Source of the calibration images.
        engine_spec: What the engine asks for.

    Returns:
        The graph to convert, and notes for the record, of which there are none if nothing was tried.
    """
    images = data.calibration()
    judges = spread(images, JUDGES)
    with in_floating_point(plain):
        wanted = _logits(plain, judges, method.calibration_batch)
    if sqnr_db(wanted, _logits(plain, judges, method.calibration_batch)) >= ENOUGH_DB:
        return plain, {}
    exact = method.for_kernels(network, data, engine_spec)
    found = tried(method, exact, spread(images, IMAGES), engine_spec)
    best = max(found, key=found.__getitem__)
    before, after = found[Remedy()], found[best]
    if not after >= before + GAIN_DB:
        return plain, {"remedy": f"none helps: the logits keep {before:.1f} dB on calibration images"}
    made = plain
    if best.smoothing:
        smooth(exact, images, method.calibration_batch, method.per_channel)
        made = method.with_quantizers(exact, engine_spec)
        method.calibrate(made, images)
    if best.bias_correction:
        correct_bias(made, spread(images, IMAGES))
    return made, {"remedy": f"{best}: {before:.1f} → {after:.1f} dB of the logits on calibration images"}


def tried(method: Quantization, exact: GraphModule, images: Tensor, engine_spec: EngineSpec) -> dict[Remedy, float]:
    """Measure what each remedy leaves of the logits.

    Args:
        method: The method that calibrates.
        exact: The fp32 graph, which is not changed.
        images: Images x[N,C,H,W], of which some calibrate and the others judge.
        engine_spec: What the engine asks for.

    Returns:
        Signal-to-noise ratios in decibels. The empty remedy comes first.
    """
    judging = torch.arange(len(images)) % JUDGE == 0
    judges, rest = images[judging], images[~judging] if len(images) > 1 else images
    wanted = _logits(exact, judges, method.calibration_batch)
    found = {}
    for smoothing in (False, True):
        graph = copy.deepcopy(exact)
        if smoothing and not smooth(graph, rest, method.calibration_batch, method.per_channel):
            break
        prepared = method.with_quantizers(graph, engine_spec)
        method.calibrate(prepared, rest)
        for bias_correction in (False, True):
            if bias_correction:
                correct_bias(prepared, rest)
            kept = sqnr_db(wanted, _logits(prepared, judges, method.calibration_batch))
            found[Remedy(smoothing, bias_correction)] = kept
    return found


def spread(images: Images, count: int) -> Tensor:
    """At most `count` of images[N,...], from everywhere among them, since they may be in the order of their classes."""
    return images[torch.linspace(0, len(images) - 1, min(count, len(images))).round().long()]


def _logits(graph: GraphModule, images: Tensor, batch: int) -> Tensor:
    with torch.no_grad():
        return torch.cat([graph(chunk) for chunk in in_steps(images, batch)])
