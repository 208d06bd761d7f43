"""How much a network's predictions change when a single layer is rounded. Bits per layer are chosen by this."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpecBase, Quantizer
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from qexp.artifact import EngineSpec
from qexp.data.base import ImageData
from qexp.method.bits import FLOAT, BitWidths
from qexp.method.layers import is_weighted, layer_name
from qexp.method.quantize.base import Quantization, observe
from qexp.method.quantize.blocks import Block, extract, residual_blocks
from qexp.method.quantize.fake_quantize import FakeQuantize, fix_all, quantizers
from qexp.method.quantize.numerics import Grid, sqnr_db
from qexp.method.quantize.placement import LayerSpec


@dataclass(frozen=True)
class Sensitivity:
    """What rounding the weights and the input of one layer, and nothing else, does to the logits.

    Attributes:
        layer: Module path of the layer.
        bits: The bits that its weights and its input are rounded to.
        loss_change: Mean divergence of the predictions in nats (see `divergence`).
        sqnr_db: Signal-to-quantisation-noise ratio of the logits in decibels, infinite without noise.
    """

    layer: str
    bits: BitWidths
    loss_change: float
    sqnr_db: float


def divergence(exact: Tensor, rounded: Tensor) -> float:
    """Compute how far rounding takes the predictions from those in floating point.

    No labels are used. Instead, the change of the loss is taken to be the Kullback-Leibler divergence KL(p || q), where
    p and q are the softmax of the exact and of the rounded logits. It equals the cross entropy of q against p, less the
    least value that this cross entropy can take.

    Args:
        exact: Logits[N,K] in floating point.
        rounded: Logits[N,K] with rounding.

    Returns:
        The mean divergence over the images in nats, computed in float64.
    """
    p, q = exact.double().log_softmax(1), rounded.double().log_softmax(1)
    return float((p.exp() * (p - q)).sum(1).mean())


@dataclass
class Rounding:
    """The quantizers of one layer. There are several of a kind if the network computes the layer more than once."""

    weights: list[FakeQuantize] = field(default_factory=list)
    activations: list[FakeQuantize] = field(default_factory=list)

    def set(self, weight: Grid | None, activation: Grid | None) -> None:
        """Round to these grids, with the ranges that the observers find for them. None stands for floating point."""
        for found, grid in ((self.weights, weight), (self.activations, activation)):
            for quantizer in found:
                quantizer.enabled = grid is not None
                if grid is not None:
                    quantizer.grid, quantizer.fixed = grid, False
                    quantizer.fix()


class EachLayer(Quantizer):
    """Places one quantizer at the weights and one at the input of each layer, and shares none between layers."""

    def __init__(self, spec: LayerSpec):
        self.spec = spec

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            if is_weighted(node):
                data, weight = node.args[:2]
                specs: dict[Any, QuantizationSpecBase | None] = {data: self.spec.activation, weight: self.spec.weight}
                node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
                    specs, None, allow_implicit_sharing=False, _annotated=True
                )
        return model

    def validate(self, model: GraphModule) -> None:
        """Every graph is valid."""


def roundings(prepared: GraphModule) -> dict[str, Rounding]:
    """Find the quantizers of each layer of a graph that was prepared with `EachLayer`.

    Returns:
        The quantizers by the layer's module path, in the order in which the layers are computed.
    """
    modules = quantizers(prepared)
    found: dict[str, Rounding] = {}
    for node in prepared.graph.nodes:
        if is_weighted(node):
            rounding = found.setdefault(layer_name(node), Rounding())
            rounding.activations.append(modules[str(node.args[0].target)])
            rounding.weights.append(modules[str(node.args[1].target)])
    return found


def sensitivities(
    method: Quantization,
    network: nn.Module,
    data: ImageData,
    engine_spec: EngineSpec,
    widths: Mapping[str, Sequence[BitWidths]],
    images: int,
) -> tuple[Sensitivity, ...]:
    """Measure the sensitivity of each layer at each of its bit-widths.

    A layer's input is rounded where the layer reads it, whatever the placement is. Biases are not corrected, since the
    correction is made for all layers together.

    Args:
        method: The method whose grids and ranges are used.
        network: The network in fp32.
        data: Source of the calibration images. All of them are observed, once.
        engine_spec: What the engine asks for.
        widths: The bit-widths to try for each layer, by module path.
        images: How many of the calibration images, starting from the first, predictions are compared on.

    Returns:
        One sensitivity per layer and bit-width.
    """
    prepared = prepare_pt2e(method.folded(network, data), EachLayer(method.spec(BitWidths(8, 8), engine_spec)))
    every = data.calibration()
    observe(prepared, every, method.calibration_batch)
    fix_all(prepared)
    found = roundings(prepared)
    for rounding in found.values():
        rounding.set(None, None)

    measured = []
    with torch.no_grad(), Progress(transient=True, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task("Measuring sensitivities", total=sum(map(len, widths.values())))
        for names, rest, x in _from_each_block(prepared, every[:images], method.calibration_batch):
            exact = _answers(rest, x, method.calibration_batch)
            for name in names:
                for bits in widths[name]:
                    weight = None if bits.weight == FLOAT else method.weight_grid(bits.weight, engine_spec)
                    activation = (
                        None if bits.activation == FLOAT else method.activation_grid(bits.activation, engine_spec)
                    )
                    found[name].set(weight, activation)
                    answer = _answers(rest, x, method.calibration_batch)
                    measured.append(Sensitivity(name, bits, divergence(exact, answer), sqnr_db(exact, answer)))
                    progress.advance(task)
                found[name].set(None, None)
    return tuple(measured)


def _from_each_block(prepared: GraphModule, x: Tensor, batch: int) -> Iterator[tuple[list[str], GraphModule, Tensor]]:
    """Yield, for each block, its layers, the network from this block on, and the input of the block.

    This way, nothing that comes before a block is computed again. A layer that is computed in several blocks is listed
    with the first of them.
    """
    (logits,) = prepared.graph.output_node().all_input_nodes
    seen: set[str] = set()
    for block in residual_blocks(prepared):
        part = extract(prepared, block)
        names = dict.fromkeys(layer_name(n) for n in part.graph.nodes if is_weighted(n))
        yield [name for name in names if name not in seen], extract(prepared, Block(block.source, logits)), x
        seen |= names.keys()
        x = _answers(part, x, batch)


def _answers(part: GraphModule, x: Tensor, batch: int) -> Tensor:
    return torch.cat([part(chunk) for chunk in x.split(batch)])


def as_csv(measured: Iterable[Sensitivity]) -> str:
    """Write a CSV table with one row per layer and bit-width."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["layer", "weight_bits", "activation_bits", "loss_change_nats", "sqnr_db"])
    for each in measured:
        rows.writerow(
            [each.layer, each.bits.weight, each.bits.activation, f"{each.loss_change:.6e}", f"{each.sqnr_db:.3f}"]
        )
    return text.getvalue()
