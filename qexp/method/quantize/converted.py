"""Converted graphs, which have quantize/dequantize pairs: what computes in integers, and what is left over."""

from __future__ import annotations

from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from qexp.artifact import FloatIslands
from qexp.method.layers import is_weighted, layer_name
from qexp.method.quantize.fake_quantize import PackedWeight
from qexp.method.quantize.placement import FUSED_ACTIVATIONS, PRODUCTS, SPLITTING, keeps_scale


def layer_formats(converted: GraphModule) -> dict[str, tuple[str, str]]:
    """Read the (weight, activation) formats of each convolution and linear layer off the graph, by module path."""
    formats = {}
    for node in converted.graph.nodes:
        if is_weighted(node):
            formats[layer_name(node)] = (_format(node.args[1], converted), _format(node.args[0], converted))
    return formats


def _format(source: Node, converted: GraphModule) -> str:
    """The format of a tensor: `int8`, `uint4`, ... after a dequantize node or packed integers, otherwise `float32`."""
    if source.op == "call_module" and isinstance(module := converted.get_submodule(str(source.target)), PackedWeight):
        return f"int{module.grid.bits}"
    if "dequantize_per" not in str(source.target):
        return "float32"
    arguments: Any = source.args
    *_, quant_min, quant_max, dtype = arguments  # the last ones of both dequantize operators
    return f"{'' if dtype == torch.int8 else 'u'}int{(quant_max - quant_min).bit_length()}"


def drop_unused(converted: GraphModule) -> None:
    """Delete fp32 weights that conversion leaves beside the quantised ones, or they would be written to the file."""
    used = {node.target for node in converted.graph.nodes if node.op == "get_attr"}
    modules = {str(node.target) for node in converted.graph.nodes if node.op == "call_module"}
    for name, _ in [*converted.named_parameters(), *converted.named_buffers()]:
        path, _, leaf = name.rpartition(".")
        if name not in used and path not in modules:
            delattr(converted.get_submodule(path), leaf)


def integer_products(converted: GraphModule, exact: GraphModule) -> set[Node]:
    """The products of two activations that compute on integers, as nodes of the fp32 graph that was converted."""
    names = {node.name for node in converted.graph.nodes if node.target in PRODUCTS and not _computes_in_float(node)}
    return {node for node in exact.graph.nodes if node.name in names}


def float_islands(converted: GraphModule) -> FloatIslands:
    """Count the operators that compute in floating point, and the conversions between them and integers.

    An operator computes on integers if its placement says so, it reads nothing but dequantised tensors and constants,
    and its result is quantised, after a clipping activation or not. Layers and products may leave their result in
    floating point.
    Operators that only move values count as neither. Quantising the images and dequantising the logits are no
    conversions, as no network does without.

    Args:
        converted: The graph, whose operators have example values.
    """
    islands = {node for node in converted.graph.nodes if _computes_in_float(node)}
    entered = {source for node in islands for source in _origins(node) if _is(source, "dequantize")}
    left = [n for n in converted.graph.nodes if _is(n, "quantize") and any(s in islands for s in _origins(n))]
    return FloatIslands(len(islands), len(entered) + len(left))


def _is(node: Node, kind: str) -> bool:
    return str(node.target).startswith(f"quantized_decomposed.{kind}_per")


def _moves(node: Node) -> bool:
    return keeps_scale(node) or node.target in SPLITTING or node.target is getitem


def _origins(node: Node) -> set[Node]:
    """The nodes that compute what a node reads, past those that only move values."""
    found, waiting = set[Node](), [node]
    while waiting:
        for source in set(waiting.pop().all_input_nodes) - found:
            found.add(source)
            if _moves(source):
                waiting.append(source)
    return {source for source in found if not _moves(source)}


def _computes_in_float(node: Node) -> bool:
    value = node.meta.get("val")
    if node.op != "call_function" or not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    if _moves(node) or _is(node, "dequantize"):
        return False
    if node.target in FUSED_ACTIVATIONS and len(node.all_input_nodes) == 1:
        source = node.all_input_nodes[0]
        return _computes_in_float(source) if not _is(source, "dequantize") else not _is_quantised(node)
    if Q_ANNOTATION_KEY not in node.meta:
        return True
    layer = is_weighted(node)
    reads = all(
        _is(source, "dequantize") or source.op == "call_module" or (layer and source.op == "get_attr")
        for source in node.all_input_nodes
        if _float(source)
    )
    return not reads or not (layer or node.target in PRODUCTS or _is_quantised(node))


def _float(node: Node) -> bool:
    value = node.meta.get("val")
    return not isinstance(value, Tensor) or value.is_floating_point()


def _is_quantised(node: Node) -> bool:
    """Whether the result of a node is quantised by all of its readers, after a clipping activation or not."""
    return all(_is(u, "quantize") or (u.target in FUSED_ACTIVATIONS and _is_quantised(u)) for u in node.users)
