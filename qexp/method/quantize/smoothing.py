"""Smoothing, which evens out the channels of an activation by moving scales into the weights that read it.

An activation has one scale for all channels, so that its largest channel takes the levels of the small ones. Dividing
channel j by s_j, and multiplying the weights that read it by s_j, changes nothing in floating point (Xiao et al.,
"SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", 2023). The division costs
nothing where it is done to the weight and the bias of what gives the channel: of a norm, as in the paper, or of a
convolution or a linear layer, as in equalisation (Nagel et al., 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from qexp.data.images import Images, in_steps
from qexp.method.batch_norms import readers_of_constants
from qexp.method.layers import aten, constant_value, is_weighted
from qexp.method.quantize.channel_axis import axis_after

STRENGTH = 0.5  # the paper's alpha: the activation and the weights share what is uneven
GROUPS = 6  # place of the groups among the arguments of a convolution
# The weight and the bias of norms, by their places among the arguments. A batch norm became an addcmul.
NORMS: dict[Any, tuple[int, ...]] = {
    aten.layer_norm.default: (2, 3), aten.group_norm.default: (2, 3), aten.rms_norm.default: (2,),
    aten.addcmul.default: (2, 0),
}  # fmt: skip
CLIPS = {aten.hardtanh.default, aten.hardtanh_.default, aten.relu6.default, aten.clamp.default}
# Operators that read the type and the shape of a tensor, but none of its values.
BLIND = {aten.sym_size.int, aten.new_zeros.default, aten.new_ones.default, aten.zeros_like.default}


@dataclass(frozen=True)
class Channels:
    """An activation whose channels can be scaled.

    Attributes:
        axis: The axis of the channels where they are given.
        constants: What the channels are multiplied with and shifted by, channels first.
        layers: The layers that read the activation.
        axes: The axis of the channels in what each layer reads and in what each ReLU6 in between gives.
    """

    axis: int
    constants: tuple[Node, ...]
    layers: list[Node] = field(default_factory=list)
    axes: dict[Node, int] = field(default_factory=dict)

    @property
    def clips(self) -> list[Node]:
        return [node for node in self.axes if node.target in CLIPS]


def smooth(graph: GraphModule, images: Images, batch: int, per_channel: bool) -> int:
    """Even out the channels of all activations that allow it, in place, without changing what the graph computes.

    Args:
        graph: An fp32 graph without batch norms.
        images: Calibration images x[N,C,H,W].
        batch: How many of them are shown at once.
        per_channel: Whether weights get a scale per output channel, so that it does not matter how large the weights
            of a depthwise layer are.

    Returns:
        How many activations were smoothed.
    """
    found = smoothable(graph)
    largest = largest_magnitudes(graph, images, batch, {n: axis for each in found for n, axis in each.axes.items()})
    with torch.no_grad():
        for each in reversed(found):  # what a layer gives is scaled before what it reads, since both change its weights
            # The layers read the same values, unless some are pooled before.
            activation = torch.stack([largest[_first(layer)] for layer in each.layers]).amax(0)
            weight = torch.stack([_largest_weights(graph, layer) for layer in each.layers]).amax(0)
            depthwise = all(_groups(layer) == len(activation) for layer in each.layers)
            scale = scales(activation, weight, 1.0 if per_channel and depthwise else STRENGTH)
            for clip in each.clips:
                scale = within(scale, largest[clip], _limit(clip))
            _divide(graph, each, scale)
    return len(found)


def scales(activation: Tensor, weight: Tensor, strength: float) -> Tensor:
    """Compute what the channels of an activation are divided by.

    This is equation 4 of the SmoothQuant paper, times the factor that keeps the largest value of the activation.

    Args:
        activation: The largest magnitude of each channel, activation[C].
        weight: The largest magnitude of the weights that read each channel, weight[C].
        strength: The paper's alpha: 1 makes all channels equally large, 0 the weights that read them.

    Returns:
        scale[C], which is 1 for channels that are always zero, or that nothing reads.
    """
    used = (activation > 0) & (weight > 0)
    scale = torch.where(used, activation**strength / weight ** (1 - strength), 1)
    largest = torch.where(used, activation / scale, 0).amax()
    return torch.where(used, scale * largest / activation.amax(), 1) if used.any() else scale


def within(scale: Tensor, largest: Tensor, limit: float) -> Tensor:
    """Change scale[C] so that a ReLU6 cuts off nothing that it did not cut off before.

    Channels whose largest[C] reaches the limit keep their scale, and no other is made to get past it.
    """
    return torch.where(largest < limit, torch.maximum(scale, largest / limit), 1)


def smoothable(graph: GraphModule) -> list[Channels]:
    """Find the activations whose channels can be scaled: all that reads them are layers with weights of their own."""
    readers, nodes = readers_of_constants(graph), graph.graph.nodes
    return [found for n in nodes if (found := _source(graph, n, readers)) and _follow(n, found, readers)]


def _source(graph: GraphModule, node: Node, readers: Mapping[Node, int]) -> Channels | None:
    """What a norm or a layer gives, if its weight and bias can be changed."""
    value = node.meta.get("val")
    if node.op != "call_function" or node.kwargs or not isinstance(value, Tensor):
        return None
    layer = is_weighted(node)
    places = (1, 2) if layer else NORMS.get(node.target, ())
    given = [node.args[place] for place in places if place < len(node.args)]
    constants = [constant for constant in given if isinstance(constant, Node) and constant.op == "get_attr"]
    if not constants or constants != [each for each in given if each is not None] or given[0] is None:
        return None
    last = node.target in (aten.linear.default, aten.layer_norm.default, aten.rms_norm.default)
    axis = value.dim() - 1 if last else 1
    shapes = [constant_value(graph, constant).shape for constant in constants]
    count = value.shape[axis]
    if any(tuple(shape[:1]) != (count,) or not (layer or shape.numel() == count) for shape in shapes):
        return None
    if node.target == aten.addcmul.default and any(len(shape) != value.dim() - 1 for shape in shapes):
        return None  # it is not a batch norm: it scales another axis
    if any(readers[constant] > 1 for constant in constants):
        return None
    return Channels(axis, tuple(constants))


def _follow(node: Node, found: Channels, readers: Mapping[Node, int], axis: int | None = None) -> bool:
    """Add all that reads the channels of a node. False: something reads them that they cannot be scaled for."""
    axis = found.axis if axis is None else axis
    for user in (user for user in node.users if user.target not in BLIND):
        if user.op != "call_function" or user.kwargs or user.args[0] is not node:
            return False
        if is_weighted(user):
            if axis != (node.meta["val"].dim() - 1 if user.target == aten.linear.default else 1):
                return False
            if _weight(user).op != "get_attr" or readers[_weight(user)] > 1:
                return False
            found.layers.append(user)
            found.axes[node] = axis
            continue
        after = axis if user.target in CLIPS else axis_after(user, axis)
        if user.target in CLIPS:
            found.axes[user] = axis
        if after is None or not _follow(user, found, readers, after):
            return False
    return bool(found.layers)


def _first(layer: Node) -> Node:
    assert isinstance(layer.args[0], Node)
    return layer.args[0]


def _weight(layer: Node) -> Node:
    assert isinstance(layer.args[1], Node)
    return layer.args[1]


def _groups(layer: Node) -> int:
    groups = layer.args[GROUPS] if len(layer.args) > GROUPS else 1
    assert isinstance(groups, int)
    return groups


def _limit(clip: Node) -> float:
    """The largest magnitude up to which a ReLU6 is like a ReLU, or a clamp like nothing at all."""
    if clip.target == aten.relu6.default:
        return 6.0
    default = (-inf, inf) if clip.target == aten.clamp.default else (-1.0, 1.0)
    given: list[Any] = [*clip.args[1:], None, None]
    low, high = (end if value is None else float(value) for value, end in zip(given, default, strict=False))
    return high if low == 0 else min(-low, high)


def _largest_weights(graph: GraphModule, layer: Node) -> Tensor:
    """The largest magnitude of the weights[O,I/G,...] of a layer that read each of its I inputs."""
    weight = constant_value(graph, _weight(layer))
    rows = weight.abs().reshape(*weight.shape[:2], -1).amax(2)
    return rows.reshape(_groups(layer), -1, weight.shape[1]).amax(1).flatten()


def _divide(graph: GraphModule, channels: Channels, scale: Tensor) -> None:
    """Divide channels by scale[C], and multiply what reads them."""
    for constant in channels.constants:
        value = constant_value(graph, constant)
        value.div_(scale.reshape([-1] + [1] * (value.dim() - 1)))
    for layer in channels.layers:
        weight, groups = constant_value(graph, _weight(layer)), _groups(layer)
        rows = scale.reshape(groups, 1, -1).expand(-1, len(weight) // groups, -1).reshape(weight.shape[:2])
        weight.mul_(rows.reshape(*weight.shape[:2], *[1] * (weight.dim() - 2)))


def largest_magnitudes(graph: GraphModule, images: Images, batch: int, axes: Mapping[Node, int]) -> dict[Node, Tensor]:
    """The largest magnitude[C] of each channel of some nodes on images x[N,C,H,W], `batch` of which are shown at once.

    Args:
        axes: The axis of the channels, by node.
    """
    run = _Largest(graph, axes)
    with torch.no_grad():
        for chunk in in_steps(images, batch):
            run.run(chunk)
    return run.largest


class _Largest(Interpreter):
    def __init__(self, graph: GraphModule, axes: Mapping[Node, int]):
        super().__init__(graph)
        self.axes, self.largest = axes, dict[Node, Tensor]()

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n in self.axes:
            largest = result.abs().movedim(self.axes[n], 0).flatten(1).amax(1)
            self.largest[n] = torch.maximum(largest, self.largest.get(n, largest))
        return result
