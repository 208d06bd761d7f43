"""What rounding did to each layer of a prepared graph: statistics for layers.csv, and histograms to draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from qexp.method.layers import is_weighted, layer_name
from qexp.method.quantize.fake_quantize import FakeQuantize, in_floating_point, quantizers
from qexp.method.quantize.numerics import decibels, power

HISTOGRAMS = "histograms.npz"
IMAGES = 128  # calibration images that are looked at
CHUNK = 16  # images at a time, few because the results of all layers are held in memory
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
        self.signal += power(exact)
        self.noise += power(exact - rounded)

    @property
    def sqnr_db(self) -> float:
        return decibels(self.signal, self.noise)


class TensorStatistics:
    """Statistics of the values that a quantizer was given, and of what it rounded them to."""

    def __init__(self, quantizer: FakeQuantize):
        self.quantizer, self.noise = quantizer, SqnrSums()
        self.low, self.high, self.values, self.clipped = float("inf"), float("-inf"), 0, 0
        self.before, self.after = np.zeros(BINS), np.zeros(BINS)

    @torch.no_grad()
    def add(self, x: Tensor, rounded: Tensor) -> None:
        self.noise.add(x, rounded)
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        quantizer = self.quantizer
        integers = torch.round(quantizer.rows(x) / quantizer.positive_scale[:, None]) + quantizer.zero_point[:, None]
        self.clipped += int(((integers < quantizer.grid.quant_min) | (integers > quantizer.grid.quant_max)).sum())
        self.values += x.numel()

    @property
    def clip(self) -> tuple[float, float]:
        """The smallest and the largest value that the integers can represent in any channel."""
        scale, zero_point, grid = self.quantizer.positive_scale, self.quantizer.zero_point, self.quantizer.grid
        return float(((grid.quant_min - zero_point) * scale).min()), float(
            ((grid.quant_max - zero_point) * scale).max()
        )

    @property
    def edges(self) -> np.ndarray:
        low, high = min(self.low, self.clip[0]), max(self.high, self.clip[1])
        return np.linspace(low, high + 1e-6 * (high - low), BINS + 1)

    def count(self, x: Tensor, rounded: Tensor) -> None:
        """Count values in the histograms. Everything has to be added first, since the edges depend on it."""
        self.before += np.histogram(x.detach().numpy(), self.edges)[0]
        self.after += np.histogram(rounded.detach().numpy(), self.edges)[0]

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


def layer_statistics(prepared: GraphModule, exact: GraphModule, images: Tensor) -> LayerStatistics:
    """Find out what rounding did to each layer.

    A layer's weight before rounding is taken from `exact`, which has batch norms folded. Its input before rounding is
    the one in the rounded network. A layer that is computed several times is described as it is computed first.

    Args:
        prepared: The graph after tuning, whose quantizers round.
        exact: The graph as it was calibrated, before anything was tuned. It has the same nodes.
        images: Images x[N,C,H,W], of which the first IMAGES are used.
    """
    images = images[:IMAGES]
    layers = {layer_name(node): node for node in reversed(prepared.graph.nodes) if is_weighted(node)}
    found = quantizers(prepared, every_name=True)
    inputs, outputs = _activations(prepared, exact, images, list(layers.values()), found)
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
    seen = TensorStatistics(quantizer)
    with torch.no_grad():
        before, rounded = attrgetter(name)(exact), quantizer(attrgetter(name)(prepared))
        seen.add(before, rounded)
        seen.count(before, rounded)
    return seen


def _activations(
    prepared: GraphModule, exact: GraphModule, images: Tensor, layers: list[Node], found: dict[str, FakeQuantize]
) -> tuple[dict[str, TensorStatistics], dict[str, SqnrSums]]:
    """Run both graphs on the images.

    Returns:
        The statistics of the quantizers at the layers' inputs, by module name, and the sums for the error of the
        layers' results, by node name.
    """
    seen = {name: TensorStatistics(found[name]) for node in layers if (name := str(_first(node).target)) in found}
    results = {node.name: SqnrSums() for node in layers}
    wanted: dict[str, Tensor] = {}

    def remember(node: Node, given: Any, result: Any) -> None:
        if node.name in results:
            wanted[node.name] = result

    def compare(node: Node, given: Any, result: Any) -> None:
        if node.name in wanted:
            results[node.name].add(wanted.pop(node.name), result)
        elif node.op == "call_module" and node.target in seen:
            seen[str(node.target)].add(given, result)

    def count(node: Node, given: Any, result: Any) -> None:
        if node.op == "call_module" and node.target in seen:
            seen[str(node.target)].count(given, result)

    for chunk in images.split(CHUNK):
        with in_floating_point(exact):
            _Watcher(exact, remember).run(chunk)
        _Watcher(prepared, compare).run(chunk)
    for chunk in images.split(CHUNK):
        _Watcher(prepared, count).run(chunk)
    return seen, results


class _Watcher(Interpreter):
    """Runs a graph and shows every node to `see`."""

    def __init__(self, graph: GraphModule, see: See):
        super().__init__(graph)
        self.see = see

    @torch.no_grad()
    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        given, _ = self.fetch_args_kwargs_from_env(n)
        self.see(n, given[0] if given else None, result)
        return result
