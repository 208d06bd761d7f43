"""Rewrites operators that no integer runtime has a kernel for, in terms of operators that it has one for.

Everything computes the same in floating point. What is left of a factor is moved into a scale after conversion.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from qexp.method.layers import aten

SILU = {aten.silu.default, aten.silu_.default}
HARDSWISH = {aten.hardswish.default, aten.hardswish_.default}
HARDSIGMOID = {aten.hardsigmoid.default, aten.hardsigmoid_.default}
SPATIAL = ([2, 3], [3, 2], [-1, -2], [-2, -1])  # the axes of an image x[B,C,H,W]


@dataclass(frozen=True)
class Kernels:
    """Which integer kernels runtimes have beside convolutions, linear layers, additions and elementwise products.

    Attributes:
        curves: Whether they have them for activations that are no clipping, which SiLU is made of too.
        products: Whether they have them for products of two activations, as in attention.
        rescaling: Whether they can read a tensor with another scale than it was written with. XNNPACK knows one scale
            for each tensor.
        average_pooling: Whether they have them for poolings rather than for means over images.
        float_results: Whether those of linear layers can give their result in floating point.
        between: Whether there are any for what lies between layers, such as additions. If not, only layers compute in
            integers, and each rounds what it reads.
    """

    curves: bool
    products: bool
    rescaling: bool
    average_pooling: bool
    float_results: bool
    between: bool = True


# The kernels that each placement counts on: ONNX Runtime's and OpenVINO's, XNNPACK's, and ncnn's.
KERNELS = {
    "fused": Kernels(*[True] * 5),
    "xnnpack": Kernels(*[False] * 5),
    "ncnn": replace(Kernels(*[False] * 5), float_results=True, between=False),
}


class Writer:
    """Puts operators before a node of a graph, and gives each the meta data that quantizers are placed by."""

    def __init__(self, graph: GraphModule, node: Node):
        self.graph, self.node = graph, node

    def call(self, target: Any, *args: Any) -> Node:
        with self.graph.graph.inserting_before(self.node):
            made = self.graph.graph.call_function(target, args)
        made.meta = dict(self.node.meta)
        given = torch.fx.node.map_arg(args, lambda source: source.meta["val"])
        made.meta["val"] = target(*given)
        return made

    def constant(self, value: float) -> Node:
        name = f"{self.node.name}_constant"
        self.graph.register_buffer(name, torch.full((1,), value))
        with self.graph.graph.inserting_before(self.node):
            made = self.graph.graph.get_attr(name)
        example: Any = next(n.meta["val"] for n in self.node.all_input_nodes if isinstance(n.meta.get("val"), Tensor))
        made.meta["val"] = example.new_full((1,), value)
        return made


def decompose(graph: GraphModule, kernels: Kernels) -> bool:
    """Rewrite a graph in place.

    Hardswish and hardsigmoid become additions and clipped results (Howard et al., "Searching for MobileNetV3", 2019,
    section 5.2), and means over an image become poolings. SiLU becomes x * sigmoid(x), and scaled dot-product attention
    becomes products of matrices and a softmax. Average poolings that count padding as zeros read an image that has been
    padded, since OpenVINO 2026.4 pads integers with 0, whatever their zero point.

    Args:
        graph: The graph, whose nodes have example values.
        kernels: What there are integer kernels for.

    Returns:
        Whether anything has changed.
    """
    changed = False
    for node in list(graph.graph.nodes):
        write = _rewriting(node, kernels)
        if write is not None:
            node.replace_all_uses_with(write(Writer(graph, node), node))
            graph.graph.erase_node(node)
            changed = True
    graph.recompile()
    return changed


def _rewriting(node: Node, kernels: Kernels) -> Callable[[Writer, Node], Node] | None:
    """What rewrites a node, or None if it stays."""
    if node.target in HARDSWISH and kernels.rescaling:
        return _hardswish
    if node.target in HARDSIGMOID and kernels.rescaling:
        return lambda writer, node: _hardsigmoid(writer, node.args[0])
    if node.target in SILU and kernels.curves:
        return _silu
    if kernels.average_pooling and _counts_padding(node):
        return _padded_pooling
    if _is_mean_of_image(node):
        return _average_pooling if kernels.average_pooling else _adaptive_pooling
    if node.target == aten.scaled_dot_product_attention.default and kernels.products and _is_plain_attention(node):
        return _attention
    return None


def _is_mean_of_image(node: Node) -> bool:
    if node.target not in (aten.adaptive_avg_pool2d.default, aten.mean.dim) or _value(node.args[0]).dim() != 4:
        return False
    return node.args[1] in ([[1, 1]] if node.target == aten.adaptive_avg_pool2d.default else SPATIAL)


def _pooling_options(node: Node) -> dict[str, Any]:
    """The arguments of an average pooling after the image, by name. Those that have their default may be absent."""
    names = "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"
    return dict(zip(names, node.args[1:], strict=False)) | node.kwargs


def _counts_padding(node: Node) -> bool:
    """Whether a node is an average pooling in which padding counts as zeros."""
    if node.target != aten.avg_pool2d.default:
        return False
    options = _pooling_options(node)
    return any(options.get("padding", ())) and options.get("count_include_pad", True) and not options.get("ceil_mode")


def _value(node: Any) -> Tensor:
    return node.meta["val"]


def _hardsigmoid(writer: Writer, x: Any) -> Node:
    """hardsigmoid(x) = clip(x + 3, 0, 6) / 6."""
    shifted = writer.call(aten.add.Tensor, x, writer.constant(3.0))
    return writer.call(aten.mul.Tensor, writer.call(aten.hardtanh.default, shifted, 0.0, 6.0), 1 / 6)


def _hardswish(writer: Writer, node: Node) -> Node:
    return writer.call(aten.mul.Tensor, node.args[0], _hardsigmoid(writer, node.args[0]))


def _silu(writer: Writer, node: Node) -> Node:
    return writer.call(aten.mul.Tensor, node.args[0], writer.call(aten.sigmoid.default, node.args[0]))


def _average_pooling(writer: Writer, node: Node) -> Node:
    sides = [int(side) for side in _value(node.args[0]).shape[2:]]
    return _shaped(writer, node, writer.call(aten.avg_pool2d.default, node.args[0], sides))


def _padded_pooling(writer: Writer, node: Node) -> Node:
    """The same pooling of an image with zeros around it."""
    options = _pooling_options(node)
    height, width = (2 * options["padding"])[:2]  # one number stands for both
    padded = writer.call(aten.constant_pad_nd.default, node.args[0], [width, width, height, height])
    rest = options["kernel_size"], options["stride"], [0, 0], False, True, options.get("divisor_override")
    return writer.call(aten.avg_pool2d.default, padded, *rest)


def _adaptive_pooling(writer: Writer, node: Node) -> Node:
    return _shaped(writer, node, writer.call(aten.adaptive_avg_pool2d.default, node.args[0], [1, 1]))


def _shaped(writer: Writer, node: Node, pooled: Node) -> Node:
    """pooled[B,C,1,1], in the shape of a mean."""
    return pooled if _value(node).dim() == 4 else writer.call(aten.flatten.using_ints, pooled, 1)


def _attention_options(node: Node) -> dict[str, Any]:
    """The arguments of attention after the values, by name. Those that have their default may be absent."""
    return dict(zip(("attn_mask", "dropout_p", "is_causal"), node.args[3:], strict=False)) | node.kwargs


def _is_plain_attention(node: Node) -> bool:
    """Whether attention has neither dropout nor a causal mask, and as many heads everywhere."""
    return not any(_attention_options(node).get(name) for name in ("dropout_p", "is_causal", "enable_gqa"))


def _attention(writer: Writer, node: Node) -> Node:
    """softmax(scale * q @ k.T + mask) @ v, with q[...,N,D], k[...,M,D], v[...,M,E] and mask[...,N,M].

    The factor multiplies the queries, where it can become part of their scale.
    """
    query, key, value = node.args[:3]
    options = _attention_options(node)
    mask, factor = options.get("attn_mask"), options.get("scale")
    scaled = writer.call(aten.mul.Tensor, query, _value(query).shape[-1] ** -0.5 if factor is None else factor)
    scores = writer.call(aten.matmul.default, scaled, writer.call(aten.transpose.int, key, -2, -1))
    if mask is not None and _value(mask).dtype == torch.bool:
        scores = writer.call(aten.masked_fill.Scalar, scores, writer.call(aten.logical_not.default, mask), -torch.inf)
    elif mask is not None:
        scores = writer.call(aten.add.Tensor, scores, mask)
    return writer.call(aten.matmul.default, writer.call(aten.softmax.int, scores, -1), value)


FACTORS = {aten.mul.Tensor: operator.mul, aten.div.Tensor: operator.truediv}


def is_factor(node: Node) -> bool:
    """Whether a node multiplies a tensor by a positive number, so that only its scale changes."""
    return (
        node.target in FACTORS
        and len(node.args) == 2
        and isinstance(node.args[0], Node)
        and isinstance(node.args[1], int | float)
        and node.args[1] > 0
    )


def absorb_factors(converted: GraphModule) -> None:
    """Make factors of integer tensors part of their scales, in place: factor * (scale * (q - zero_point)).

    Factors that no placement has annotated stay, since their runtime does not read tensors with other scales.

    Args:
        converted: A graph with quantize/dequantize pairs, in which every reader has a dequantize node of its own.
    """
    dequantize = torch.ops.quantized_decomposed.dequantize_per_tensor.default
    for node in list(converted.graph.nodes):
        source = node.args[0] if is_factor(node) and Q_ANNOTATION_KEY in node.meta else None
        if isinstance(source, Node) and source.target == dequantize and len(source.users) == 1:
            integers, scale, *rest = source.args
            source.args = (integers, FACTORS[node.target](scale, node.args[1]), *rest)
            node.replace_all_uses_with(source)
            converted.graph.erase_node(node)
    converted.recompile()
