"""Equalisation and bias correction, which change a network in floating point so that rounding costs less accuracy.

Both are from Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from qexp.data.images import Images
from qexp.method.layers import aten, is_weighted
from qexp.method.quantize.fake_quantize import in_floating_point

# Operators with f(s * x) = s * f(x) for every s > 0, channel by channel.
HOMOGENEOUS = {
    aten.relu.default, aten.relu_.default, aten.max_pool2d.default, aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default, aten.mean.dim, aten.dropout.default, aten.flatten.using_ints, aten.view.default,
    aten.reshape.default,
}  # fmt: skip
ROUNDS = 20  # of equalisation, at most
CORRECTION_IMAGES = 256


def equalise(graph: GraphModule) -> None:
    """Give the weights of neighbouring layers the same range in each channel, in place.

    Layers with the weights W1[i] / s and s * W2[:, i] compute the same for every s > 0, so s can be chosen for each
    channel i (section 4.1). Only pairs of layers are changed that have nothing but homogeneous operators between them,
    and whose intermediate results nothing else reads.
    """
    pairs = list(_pairs(graph))
    with torch.no_grad():
        for _ in range(ROUNDS):
            largest = max((_equalise_pair(graph, *pair) for pair in pairs), default=0.0)
            if largest < 1e-3:
                return


def _pairs(graph: GraphModule) -> Iterator[tuple[Node, Node]]:
    for first in graph.graph.nodes:
        if not is_weighted(first):
            continue
        node = first
        while len(node.users) == 1 and (node := next(iter(node.users))).target in HOMOGENEOUS:
            pass
        if (
            is_weighted(node)
            and node is not first
            and node.args[0] is not first.args[0]
            and _channels_match(graph, first, node)
        ):
            yield first, node


def _channels_match(graph: GraphModule, first: Node, second: Node) -> bool:
    out_channels = _tensor(graph, first.args[1]).shape[0]
    weight = _tensor(graph, second.args[1])
    return weight.shape[1] == out_channels or (weight.shape[1] == 1 and weight.shape[0] == out_channels)


def _equalise_pair(graph: GraphModule, first: Node, second: Node) -> float:
    """Equalise a pair of layers and return the largest change of a channel, as |log s|."""
    one, other = _tensor(graph, first.args[1]), _tensor(graph, second.args[1])
    depthwise = other.shape[1] != one.shape[0]
    shape = [-1] + [1] * (other.dim() - 1) if depthwise else [1, -1] + [1] * (other.dim() - 2)
    ranges = one.abs().flatten(1).amax(1), other.abs().movedim(0 if depthwise else 1, 0).flatten(1).amax(1)
    scale = torch.where((ranges[0] > 0) & (ranges[1] > 0), (ranges[0] / ranges[1]).sqrt(), 1)
    one.div_(scale.reshape([-1] + [1] * (one.dim() - 1)))
    if len(first.args) > 2 and isinstance(first.args[2], Node):
        _tensor(graph, first.args[2]).div_(scale)
    other.mul_(scale.reshape(shape))
    return float(scale.log().abs().max())


def correct_bias(prepared: GraphModule, images: Images) -> None:
    """Shift biases so that rounding no longer changes the mean output of any channel, layer after layer.

    This is the variant of section 4.2 that measures the means on data.

    Args:
        prepared: The graph to correct, with all quantizers fixed.
        images: Calibration images x[N,C,H,W], of which the first CORRECTION_IMAGES are used.
    """
    shown = images[:CORRECTION_IMAGES]
    with torch.no_grad():
        plain = _Means(prepared, None)
        with in_floating_point(prepared):
            plain.run(shown)
        _Means(prepared, plain.means).run(shown)


class _Means(Interpreter):
    """Runs a graph and records the mean output of each channel of every layer.

    Args:
        graph: The graph to run.
        wanted: Mean outputs by node name, which biases are shifted to reach. None leaves the biases as they are.
    """

    def __init__(self, graph: GraphModule, wanted: dict[str, Tensor] | None):
        super().__init__(graph)
        self.graph_module, self.wanted = graph, wanted
        self.means: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if not is_weighted(n):
            return result
        channels = result.dim() - 1 if n.target == aten.linear.default else 1
        mean = result.movedim(channels, 0).flatten(1).mean(1)
        self.means[n.name] = mean
        if self.wanted is None:
            return result
        shift = self.wanted[n.name] - mean
        _bias(self.graph_module, n).add_(shift)
        return result + shift.reshape([-1] + [1] * (result.dim() - 1 - channels))


def _bias(graph: GraphModule, layer: Node) -> Tensor:
    """The bias of a layer. A layer without a bias is given one of zeros."""
    if len(layer.args) > 2 and isinstance(layer.args[2], Node):
        return _tensor(graph, layer.args[2])
    name = f"{layer.name}_bias"
    setattr(graph, name, nn.Parameter(torch.zeros(_tensor(graph, _source(layer.args[1])).shape[0])))
    with graph.graph.inserting_before(layer):
        node = graph.graph.get_attr(name)
    layer.args = (*layer.args[:2], node, *layer.args[3:])
    graph.recompile()
    return getattr(graph, name)


def _source(node: Any) -> Node:
    """The constant behind the quantizers of a weight."""
    while node.op == "call_module":
        node = node.args[0]
    return node


def _tensor(graph: GraphModule, node: Any) -> Tensor:
    return attrgetter(str(_source(node).target))(graph).data
