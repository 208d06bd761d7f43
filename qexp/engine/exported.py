"""Reads exported graphs for engines whose files qexp writes itself: shapes are fixed, and batch norms are folded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.ao.quantization.fx import _decomposed  # noqa: F401  (registers the quantize/dequantize operators)
from torch.fx import GraphModule, Node
from torch.nn.utils.fusion import fuse_conv_bn_weights

from qexp.tracing import without_stack_traces
from qexp.types import Unsupported, UserError, first_line

aten = torch.ops.aten
BATCH_NORMS = {aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default}
# Operators that give what they are given, in a network that is not trained.
IDENTITIES = {"alias", "clone", "contiguous", "detach", "detach_", "dropout", "lift_fresh_copy", "feature_dropout"}


@dataclass(frozen=True, eq=False)
class Grid:
    """The integers that stand for a tensor's values, each for (integer - zero) * scale.

    Attributes:
        scale: One number for the whole tensor, or one for each index of `axis`; scale[1] or scale[C], float32.
        zero: The integers that stand for 0, in the shape of `scale`.
        axis: The axis along which scales differ.
    """

    scale: np.ndarray
    zero: np.ndarray
    axis: int = 0

    def same_as(self, other: Grid | None) -> bool:
        return (
            other is not None
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero, other.zero)
            and (self.axis == other.axis or len(self.scale) == 1)
        )


def read_graph(graph: Path, shape: tuple[int, ...], engine: str) -> GraphModule:
    """Read a plain `.pt2` for images x[B,C,H,W] of one shape.

    Every node has an example value in its `meta["val"]`, nothing is changed in place, batch norms behind convolutions
    are part of these, and other batch norms are products and sums.

    Raises:
        UserError: The network cannot be exported with this number of images.
    """
    try:
        with torch.no_grad(), without_stack_traces():
            network = torch.export.load(graph).module(check_guards=False)
            program = torch.export.export(network, (torch.zeros(shape),)).run_decompositions({})
    except Exception as error:
        raise UserError(f"{engine} cannot read this network: {first_line(error)[:300]}") from error
    made = program.module(check_guards=False)
    assert isinstance(made, GraphModule)
    _fold_batch_norms(made)
    _split_sums_of_products(made)
    return made


def operator_name(node: Node) -> str:
    """The name of the operator that a node calls, without its overload, such as `conv2d`."""
    if node.op != "call_function":
        return node.op
    packet = getattr(node.target, "overloadpacket", node.target)
    return str(getattr(packet, "__name__", packet))


def arguments(node: Node) -> dict[str, Any]:
    """All arguments of a node by name, with the defaults of the operator's schema. Without a schema there are none."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {}
    given = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | node.kwargs
    return {a.name: a.default_value for a in schema.arguments} | given


def shape_of(node: Node) -> tuple[int, ...]:
    return tuple(int(side) for side in node.meta["val"].shape)


def constant(graph: GraphModule, node: Any) -> Tensor | None:
    """The tensor that a node stands for, or None if it is computed."""
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    value = attrgetter(str(node.target))(graph)
    return value.detach() if isinstance(value, Tensor) else None


def is_quantize(node: Node) -> bool:
    return operator_name(node).startswith("quantize_per_")


def is_dequantize(node: Node) -> bool:
    return operator_name(node).startswith("dequantize_per_")


def grid_of(graph: GraphModule, node: Node) -> Grid:
    """The integers of a quantize or dequantize node."""
    given: Any = node.args
    _, scale, zero, axis, *_ = given  # what follows scale and zero point of a whole tensor is its smallest integer
    per_channel = operator_name(node).endswith("channel")
    scales, zeros = (v if (v := constant(graph, each)) is not None else torch.tensor([each]) for each in (scale, zero))
    return Grid(scales.float().numpy().reshape(-1), zeros.long().numpy().reshape(-1), int(axis) if per_channel else 0)


def rounded_to(graph: GraphModule, node: Node) -> Grid | None:
    """The integers that all readers of a node round it to, or None if they do not agree, or one does not round it."""
    grids = [grid_of(graph, user) if is_quantize(user) else None for user in node.users]
    if not grids or grids[0] is None or not all(grids[0].same_as(grid) for grid in grids):
        return None
    return grids[0]


def sole_reader(node: Node) -> Node | None:
    """The node that alone reads a node."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def clipping(node: Node | None) -> tuple[float, float] | None:
    """The range to which a node clips what it reads, or None if it does something else."""
    if node is None or node.op != "call_function":
        return None
    name, given = operator_name(node), arguments(node)
    if name == "relu":
        return 0.0, np.inf
    if name == "relu6":
        return 0.0, 6.0
    if name == "hardtanh":
        return float(given["min_val"]), float(given["max_val"])
    if name == "clamp":
        low, high = given["min"], given["max"]
        return -np.inf if low is None else float(low), np.inf if high is None else float(high)
    return None


def pair(value: Any) -> tuple[int, int]:
    """Two numbers, for height and width, of which torch may name one alone."""
    both = [value] if isinstance(value, int) else list(value)
    return int(both[0]), int(both[-1])


def unsupported(engine: str, node: Node, what: str = "") -> Unsupported:
    """The error for an operator that an engine's file cannot hold, with the module that it belongs to."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    module = f" of {stack[-1][0]}" if stack and stack[-1][0] else ""
    return Unsupported(f"{engine} has no operator for {operator_name(node)}{module}{f' {what}' if what else ''}")


def _fold_batch_norms(graph: GraphModule) -> None:
    """Make each batch norm part of the convolution before it, or a product and a sum if there is none of its own."""
    for norm in [n for n in graph.graph.nodes if n.op == "call_function" and n.target in BATCH_NORMS]:
        source = norm.args[0]
        folded = operator_name(source) == "conv2d" and len(source.users) == 1
        folded = folded and constant(graph, source.args[1]) is not None
        made = _into_convolution(graph, source, norm) if folded else _multiply_add(graph, norm)
        for result in _results(norm):
            result.replace_all_uses_with(made)
    graph.graph.eliminate_dead_code()


def _statistics(graph: GraphModule, norm: Node) -> tuple[Any, ...]:
    """Mean, variance, epsilon, weight and bias of a batch norm, as torch's functions for folding take them."""
    given = arguments(norm)
    mean, variance, weight, bias = (
        constant(graph, given[name]) for name in ("running_mean", "running_var", "weight", "bias")
    )
    assert mean is not None
    ones, zeros = torch.ones_like(mean), torch.zeros_like(mean)
    return mean, variance, given["eps"], ones if weight is None else weight, zeros if bias is None else bias


def _constants(graph: GraphModule, before: Node, **values: Tensor) -> list[Node]:
    """Nodes for new constants of a graph, put before a node."""
    made = []
    for name, value in values.items():
        graph.register_buffer(f"{before.name}_{name}", value.detach())
        with graph.graph.inserting_before(before):
            made.append(graph.graph.get_attr(f"{before.name}_{name}"))
        made[-1].meta["val"] = value
    return made


def _into_convolution(graph: GraphModule, convolution: Node, norm: Node) -> Node:
    given = arguments(convolution)
    weight, bias = (constant(graph, given[name]) for name in ("weight", "bias"))
    assert weight is not None
    folded = fuse_conv_bn_weights(weight, bias, *_statistics(graph, norm))
    made = _constants(graph, convolution, folded_weight=folded[0], folded_bias=folded[1])
    convolution.args = (convolution.args[0], *made, *convolution.args[3:])
    return convolution


def _multiply_add(graph: GraphModule, norm: Node) -> Node:
    mean, variance, epsilon, weight, bias = _statistics(graph, norm)
    scale, source = weight / torch.sqrt(variance + epsilon), norm.args[0]
    assert isinstance(source, Node)
    channels = [-1] + [1] * (source.meta["val"].dim() - 2)
    shift = (bias - mean * scale).reshape(channels)
    factor, summand = _constants(graph, norm, factor=scale.reshape(channels), summand=shift)
    return _sum_of_product(graph, norm, summand, source, factor)


def _sum_of_product(graph: GraphModule, before: Node, summand: Node, *factors: Node) -> Node:
    """New nodes for factor * factor + summand, put before a node."""
    with graph.graph.inserting_before(before):
        product = graph.graph.call_function(aten.mul.Tensor, factors)
        result = graph.graph.call_function(aten.add.Tensor, (product, summand))
    product.meta["val"] = factors[0].meta["val"] * factors[1].meta["val"]
    result.meta["val"] = product.meta["val"] + summand.meta["val"]
    return result


def _split_sums_of_products(graph: GraphModule) -> None:
    """Make products and sums of what torch computes at once."""
    for node in graph.graph.find_nodes(op="call_function", target=aten.addcmul.default):
        given = arguments(node)
        if given["value"] == 1:
            factors = given["tensor1"], given["tensor2"]
            node.replace_all_uses_with(_sum_of_product(graph, node, given["self"], *factors))
    graph.graph.eliminate_dead_code()


def _results(norm: Node) -> Iterator[Node]:
    """The nodes that stand for the normalised values, which the functional operator gives first of several results."""
    if norm.target == aten.batch_norm.default:
        yield norm
    else:
        yield from (user for user in norm.users if user.args[1] == 0)
