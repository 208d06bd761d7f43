"""What rounding did to each layer of a prepared graph: statistics for layers.csv, and histograms to draw."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from qexp.data.images import Images
from qexp.method.layers import is_weighted, layer_name
from qexp.method.quantize.fake_quantize import FakeQuantize, in_floating_point, quantizers
from qexp.method.quantize.numerics import count_in_bins, decibels, pieces, power

HISTOGRAMS = "histograms.npz"
IMAGES = 64  # calibration images that are looked at, at most
PIXELS = 8 * 224 * 224  # of them together, at most, because the results of all layers are held in memory
BINS = 200  # of a histogram

See = Callable[[Node, Any, Any], None]  # takes a node, its first argument and its result


@dataclass(frozen=True)
class LayerStatistics:
    """What rounding did to the layers of a graph.

    Attributes:
        statistics: Numbers by layer and by column of layers.csv.
        histograms: Arrays by `layer/tensor/part`, where the tensor is `weight` or `input` and the part is `edges`,
            `before` or `after`.
    """

    statistics: dict[str, dict[str, float]]
    histograms: dict[str, np.ndarray]

    def save(self, folder: Path) -> str:
        """Write the histograms to `folder` and return the name of their file."""
        np.savez_compressed(folder / HISTOGRAMS, **self.histograms)  # type: ignore[arg-type]
        return HISTOGRAMS


class SqnrSums:
    """Adds up, tensor by tensor, what a signal-to-quantisation-noise ratio is computed from."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0

    def add(self, exact: Tensor, rounded: Tensor) -> None:
        for x, q in zip(pieces(exact.reshape(1, -1)), pieces(rounded.reshape(1, -1)), strict=True):
            self.signal += power(x)
            self.noise += power(x - q)

    @property
    def sqnr_db(self) -> float:
        return decibels(self.signal, self.noise)


class TensorStatistics:
    """Statistics of the values that a quantizer was given, and of what it rounded them to.

    Args:
        quantizer: The quantizer.
        x: What it was given.
        rounded: What it gave, in the same shape.
    """

    def __init__(self, quantizer: FakeQuantize, x: Tensor, rounded: Tensor):
        self.quantizer, self.noise, self.values = quantizer, SqnrSums(), x.numel()
        self.noise.add(x, rounded)
        self.low, self.high = (float(end) for end in x.aminmax())
        self.clipped = sum(self._clipped(piece) for piece in pieces(quantizer.rows(x)))
        low, high = min(self.low, self.clip[0]), max(self.high, self.clip[1])
        self.edges = np.linspace(low, high + 1e-6 * (high - low), BINS + 1)
        self.before, self.after = (
            count_in_bins(values.flatten(), self.edges[0], self.edges[-1], BINS).numpy() for values in (x, rounded)
        )

    def _clipped(self, rows: Tensor) -> int:
        """How many values of rows[R,N] lie outside the grid."""
        grid, scale, zero_point = self.quantizer.grid, self.quantizer.positive_scale, self.quantizer.zero_point
        integers = (rows / scale[:, None]).round_().add_(zero_point[:, None])
        return int((integers < grid.quant_min).logical_or_(integers > grid.quant_max).count_nonzero())

    @property
    def clip(self) -> tuple[float, float]:
        """The smallest and the largest value that the integers can represent in any channel."""
        scale, zero_point, grid = self.quantizer.positive_scale, self.quantizer.zero_point, self.quantizer.grid
        return float(((grid.quant_min - zero_point) * scale).min()), float(
            ((grid.quant_max - zero_point) * scale).max()
        )

    def statistics(self) -> dict[str, float]:
        scale, zero_point = self.quantizer.positive_scale, self.quantizer.zero_point
        return {
            "low": self.low, "high": self.high, "clip_low": self.clip[0], "clip_high": self.clip[1],
            "scale_min": float(scale.min()), "scale_max": float(scale.max()),
            "zero_point_min": float(zero_point.min()), "zero_point_max": float(zero_point.max()),
            "clipped": self.clipped / self.values, "sqnr_db": self.noise.sqnr_db,
        }  # fmt: skip

    def histogram(self) -> dict[str, np.ndarray]:
        return {"edges": self.edges, "before": self.before, "after": self.after}


def layer_statistics(prepared: GraphModule, exact: GraphModule, images: Images) -> LayerStatistics:
    """Find out what rounding did to each layer.

    A layer's weight before rounding is taken from `exact`, which has batch norms folded. Its input before rounding is
    the one in the rounded network. A layer that is computed several times is described as it is computed first.

    Args:
        prepared: The graph after tuning, whose quantizers round.
        exact: The graph as it was calibrated, before anything was tuned. It has the same nodes.
        images: Images x[N,C,H,W], of which the first IMAGES are used. If these have more than PIXELS pixels, some of
            them are, at equal distances.
    """
    shown = images[:IMAGES]
    shown = shown[:: math.ceil(shown[:, 0].numel() / PIXELS)]
    layers = {layer_name(node): node for node in reversed(prepared.graph.nodes) if is_weighted(node)}
    found = quantizers(prepared, every_name=True)
    with torch.no_grad():
        inputs, outputs = _activations(prepared, exact, shown, list(layers.values()), found)
    statistics: dict[str, dict[str, float]] = {}
    histograms: dict[str, np.ndarray] = {}
    for path, node in reversed(layers.items()):
        statistics[path] = {"output_sqnr_db": outputs[node.name].sqnr_db}
        seen = {"weight": _weight(prepared, exact, node.args[1], found), "input": inputs.get(str(_first(node).target))}
        for tensor, known in seen.items():
            if known is not None:
                statistics[path] |= {f"{tensor}_{column}": value for column, value in known.statistics().items()}
                histograms |= {f"{path}/{tensor}/{part}": values for part, values in known.histogram().items()}
    return LayerStatistics(statistics, histograms)


def _first(node: Node) -> Node:
    assert isinstance(node.args[0], Node)
    return node.args[0]


def _weight(
    prepared: GraphModule, exact: GraphModule, source: Any, found: dict[str, FakeQuantize]
) -> TensorStatistics | None:
    if source.target not in found:
        return None
    quantizer, name = found[source.target], str(_first(source).target)
    with torch.no_grad():
        return TensorStatistics(quantizer, attrgetter(name)(exact).detach(), quantizer(attrgetter(name)(prepared)))


def _activations(
    prepared: GraphModule, exact: GraphModule, images: Tensor, layers: list[Node], found: dict[str, FakeQuantize]
) -> tuple[dict[str, TensorStatistics], dict[str, SqnrSums]]:
    """Run both graphs on the images.

    Returns:
        The statistics of the quantizers at the layers' inputs, by module name, and the sums for the error of the
        layers' results, by node name.
    """
    names = {str(_first(node).target) for node in layers} & found.keys()
    seen: dict[str, TensorStatistics] = {}
    results = {node.name: SqnrSums() for node in layers}
    wanted: dict[str, Tensor] = {}

    def remember(node: Node, given: Any, result: Any) -> None:
        if node.name in results:
            wanted[node.name] = result.clone()  # since an activation may change it in place

    def compare(node: Node, given: Any, result: Any) -> None:
        if node.name in wanted:
            results[node.name].add(wanted.pop(node.name), result)
        elif node.op == "call_module" and node.target in names:
            seen[str(node.target)] = TensorStatistics(found[str(node.target)], given, result)

    with in_floating_point(exact):
        _Watcher(exact, remember).run(images)
    _Watcher(prepared, compare).run(images)
    return seen, results


class _Watcher(Interpreter):
    """Runs a graph and shows every node to `see`."""

    def __init__(self, graph: GraphModule, see: See):
        super().__init__(graph)
        self.see = see

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        first = n.args[0] if n.args else None
        self.see(n, self.env[first] if isinstance(first, Node) else first, result)
        return result
