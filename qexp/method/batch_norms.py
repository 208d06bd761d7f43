"""The batch norms of an exported graph, which are folded into the layers before them or become multiply-adds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from qexp.method.layers import aten, constant_value, constants

BATCH_NORM = aten.batch_norm.default
CONVOLUTIONS = {
    aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding, aten.conv3d.default,
    aten.conv3d.padding,
}  # fmt: skip
TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
FOLDED = "qexp_folded"  # key of the modules of the batch norm that was folded into a layer, in the layer's meta data
GROUPS = 6  # place of the groups among the arguments of a transposed convolution


def fold_batch_norms(graph: GraphModule, fuse: bool = True) -> GraphModule:
    """Replace the batch norms of an exported graph.

    A batch norm is folded into the layer before it where that changes nothing else: no other operator reads the layer's
    result, and no other layer has its weight or its bias. Any other becomes scale[C,1,1] * x[B,C,H,W] + shift[C,1,1].
    torchao folds into whatever stands before a batch norm, which is wrong for layers that are used twice.

    Args:
        graph: A graph for inference, which is used up. Batch norms that compute statistics of the batch stay.
        fuse: Whether to fold. If not, every batch norm becomes a multiply-add.

    Returns:
        The graph without those, which shares the other weights.
    """
    readers = readers_of_constants(graph)
    for node in [n for n in graph.graph.nodes if n.target == BATCH_NORM and not n.args[5]]:
        layer = foldable_layer(node, readers) if fuse else None
        if layer:
            _fold(graph, layer, node)
        else:
            _separate(graph, node)
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    return GraphModule(graph, graph.graph)  # without the weights that nothing reads any more


def foldable_layer(norm: Node, readers: Mapping[Node, int]) -> Node | None:
    """The layer that a batch norm of an exported graph can be folded into, or None.

    Args:
        norm: The batch norm.
        readers: What `readers_of_constants` found in the graph before anything was folded.
    """
    layer = norm.args[0]
    assert isinstance(layer, Node)
    if layer.target not in CONVOLUTIONS | TRANSPOSED | {aten.linear.default} or len(layer.users) != 1:
        return None
    constants = _weight_and_bias(layer)
    if any(not isinstance(constant, Node) or constant.op != "get_attr" for constant in constants if constant):
        return None  # the weight is computed from the images
    if layer.target == aten.linear.default and layer.meta["val"].dim() != 2:
        return None  # the norm is over another axis than the layer's features
    if layer.target in TRANSPOSED and len(layer.args) > GROUPS and layer.args[GROUPS] != 1:
        return None
    # A bias that came with another batch norm has no other reader.
    return layer if all(readers.get(constant, 1) == 1 for constant in constants if constant) else None


def _weight_and_bias(layer: Node) -> tuple[Any, Any]:
    return layer.args[1], layer.args[2] if len(layer.args) > 2 else None


def readers_of_constants(graph: GraphModule) -> dict[Node, int]:
    """How many operators read each constant of a graph, under its name or another."""
    memory = {node: value.data_ptr() for node, value in constants(graph).items()}
    readers: Counter[int] = Counter()
    for node, place in memory.items():
        readers[place] += len(node.users)
    return {node: readers[place] for node, place in memory.items()}


def _statistics(graph: GraphModule, norm: Node) -> tuple[Tensor, Tensor, float, Tensor, Tensor]:
    """The mean, variance, epsilon, weight and bias of a batch norm, the last two of which it need not have."""
    weight, bias, mean, variance = (constant_value(graph, a) if isinstance(a, Node) else None for a in norm.args[1:5])
    assert mean is not None and variance is not None and isinstance(norm.args[7], float)
    weight = torch.ones_like(mean) if weight is None else weight
    bias = torch.zeros_like(mean) if bias is None else bias
    return mean, variance, norm.args[7], weight, bias


def _fold(graph: GraphModule, layer: Node, norm: Node) -> None:
    constants = _weight_and_bias(layer)
    weight, bias = (constant_value(graph, constant) if constant else None for constant in constants)
    assert weight is not None
    if layer.target == aten.linear.default:
        folded = fuse_linear_bn_weights(weight, bias, *_statistics(graph, norm))
    else:
        folded = fuse_conv_bn_weights(weight, bias, *_statistics(graph, norm), transpose=layer.target in TRANSPOSED)
    names = [constant.target if constant else f"{constants[0].target}_bias" for constant in constants]
    for name, value in zip(names, folded, strict=True):
        _set(graph, str(name), value)
    if not constants[1]:
        with graph.graph.inserting_before(layer):
            added = graph.graph.get_attr(str(names[1]))
        layer.args = (layer.args[0], layer.args[1], added, *layer.args[3:])
    layer.meta[FOLDED] = norm.meta.get("nn_module_stack")
    norm.replace_all_uses_with(layer)


def _separate(graph: GraphModule, norm: Node) -> None:
    mean, variance, epsilon, weight, bias = _statistics(graph, norm)
    scale = weight / torch.sqrt(variance + epsilon)
    shape = [-1] + [1] * (norm.meta["val"].dim() - 2)
    nodes = []
    with graph.graph.inserting_before(norm):
        for part, value in (("shift", bias - mean * scale), ("scale", scale)):
            _set(graph, f"{norm.name}_{part}", nn.Parameter(value.reshape(shape)))
            nodes.append(graph.graph.get_attr(f"{norm.name}_{part}"))
        made = graph.graph.call_function(aten.addcmul.default, (nodes[0], norm.args[0], nodes[1]))
    made.meta = dict(norm.meta)
    norm.replace_all_uses_with(made)


def _set(graph: GraphModule, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(graph.get_submodule(path), leaf, value)
