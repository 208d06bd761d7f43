"""How much a network's answers change when a single layer is rounded: what bits per layer are chosen by.

Calibration images have no labels, so the change of the loss is the Kullback-Leibler divergence of the network's predictions from
those in floating point, which is the cross entropy against these less its own least value.
"""

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

from qexp.data.base import ImageData
from qexp.method.bits import FLOAT, BitWidths
from qexp.method.quantize.base import Quantization, observe
from qexp.method.quantize.blocks import Block, extract, residual_blocks
from qexp.method.quantize.fake_quantize import FakeQuantize, fix_all, quantizers
from qexp.method.quantize.numerics import Grid, sqnr_db
from qexp.method.quantize.placement import WEIGHTED, LayerSpec, layer_path
from qexp.types import EngineSpec


@dataclass(frozen=True)
class Sensitivity:
    """What rounding the weights and the input of `layer`, and nothing else, does to the logits.

    loss_change: mean divergence of the predictions in nats (see `divergence`); sqnr_db: signal to quantisation noise ratio of the
    logits in decibels, infinite without noise.
    """

    layer: str
    bits: BitWidths
    loss_change: float
    sqnr_db: float


def divergence(exact: Tensor, rounded: Tensor) -> float:
    """Mean over images of KL(p || q) in nats, p and q the softmax of logits exact[N,K] and rounded[N,K], in float64."""
    p, q = exact.double().log_softmax(1), rounded.double().log_softmax(1)
    return float((p.exp() * (p - q)).sum(1).mean())


@dataclass
class Rounding:
    """The quantizers of one layer; several of a kind where the network computes it more than once."""

    weights: list[FakeQuantize] = field(default_factory=list)
    activations: list[FakeQuantize] = field(default_factory=list)

    def set(self, weight: Grid | None, activation: Grid | None) -> None:
        """Round to these grids, with the ranges that observers find for them; None for floating point."""
        for found, grid in ((self.weights, weight), (self.activations, activation)):
            for quantizer in found:
                quantizer.enabled = grid is not None
                if grid is not None:
                    quantizer.grid, quantizer.fixed = grid, False
                    quantizer.fix()


class EachLayer(Quantizer):
    """A quantizer at the weights and one at the input of each layer, shared with no other layer, and none anywhere else."""

    def __init__(self, spec: LayerSpec):
        self.spec = spec

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            if node.op == "call_function" and node.target in WEIGHTED:
                data, weight = node.all_input_nodes[:2]
                specs: dict[Any, QuantizationSpecBase | None] = {data: self.spec.activation, weight: self.spec.weight}
                node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
                    specs, None, allow_implicit_sharing=False, _annotated=True
                )
        return model

    def validate(self, model: GraphModule) -> None:
        """Every graph is valid."""


def roundings(prepared: GraphModule) -> dict[str, Rounding]:
    """The quantizers of each layer of a graph that was prepared with `EachLayer`, by module path, in the order they compute in."""
    modules = quantizers(prepared)
    found: dict[str, Rounding] = {}
    for node in prepared.graph.nodes:
        if node.op == "call_function" and node.target in WEIGHTED:
            rounding = found.setdefault(layer_path(node), Rounding())
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
    """The sensitivity of each layer at each of its `widths`, with grids and ranges as `method` finds them.

    All calibration images are observed, once; the first `images` of them are answered. A layer's input is rounded where the layer
    reads it, whatever the placement is. Corrections of biases are left out: they are made for all layers together.
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
    """Each block's layers, the network from the block on, and what goes into it: what comes before is not computed again.

    A layer that is computed in several blocks comes with the first of them.
    """
    (logits,) = prepared.graph.output_node().all_input_nodes
    seen: set[str] = set()
    for block in residual_blocks(prepared):
        part = extract(prepared, block)
        names = dict.fromkeys(
            layer_path(n) for n in part.graph.nodes if n.op == "call_function" and n.target in WEIGHTED
        )
        yield [name for name in names if name not in seen], extract(prepared, Block(block.source, logits)), x
        seen |= names.keys()
        x = _answers(part, x, batch)


def _answers(part: GraphModule, x: Tensor, batch: int) -> Tensor:
    return torch.cat([part(chunk) for chunk in x.split(batch)])


def as_csv(measured: Iterable[Sensitivity]) -> str:
    """One row per layer and bit-width."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["layer", "weight_bits", "activation_bits", "loss_change_nats", "sqnr_db"])
    for each in measured:
        rows.writerow(
            [each.layer, each.bits.weight, each.bits.activation, f"{each.loss_change:.6e}", f"{each.sqnr_db:.3f}"]
        )
    return text.getvalue()
