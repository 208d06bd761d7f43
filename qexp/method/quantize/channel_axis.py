"""Follows the channels of a tensor through operators that treat each channel by itself."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor
from torch.fx import Node

from qexp.method.layers import aten

# Operators with f(s * x) = s * f(x) for every s > 0, value by value.
POINTWISE = {
    aten.relu.default, aten.relu_.default, aten.leaky_relu.default, aten.leaky_relu_.default, aten.dropout.default,
    aten.prelu.default, aten.contiguous.default, aten.clone.default,
}  # fmt: skip
# The same over the last two axes.
POOLING = {aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default}
RESHAPING = {
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int, aten.unsqueeze.default,
    aten.squeeze.dim, aten.squeeze.dims,
}  # fmt: skip
# Operators that move, choose or average values along some axes, and the place of these axes among their arguments.
ALONG = {aten.slice.Tensor: 1, aten.roll.default: 2, aten.select.int: 1, aten.mean.dim: 1}


def axis_after(node: Node, axis: int) -> int | None:
    """Find the channels of an operator's first input in its result.

    Args:
        node: An operator of an exported graph.
        axis: The axis of the channels in its first input.

    Returns:
        The axis of the channels in its result, or None if it mixes channels, or if its result is not known to be s
        times as large for s times the input.
    """
    source = node.args[0]
    arguments: Any = node.args[1:]
    assert isinstance(source, Node)
    target, value = node.target, node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    before, after = source.meta["val"].shape, value.shape
    rank = len(before)
    if target in POINTWISE:
        return axis
    if target in POOLING:
        return axis if axis == rank - 3 else None
    if target in RESHAPING:
        return _after_reshape(before, after, axis)
    if target == aten.permute.default:
        return _axes(arguments[0], rank).index(axis)
    if target == aten.transpose.int:
        one, other = _axes(arguments[:2], rank)
        return {one: other, other: one}.get(axis, axis)
    if target == aten.pad.default:
        return axis if _pads_others(axis, rank, *arguments) else None
    if target in ALONG and len(node.args) > ALONG[target]:
        axes = _axes(node.args[ALONG[target]], rank)
        dropped = axes if len(after) < rank else []
        return None if axis in axes else axis - sum(each < axis for each in dropped)
    return None


def _after_reshape(before: Sequence[Any], after: Sequence[Any], axis: int) -> int | None:
    """The axis of the same length that has as many values below it. Sizes that depend on the batch match nothing."""
    below = before[axis + 1 :]
    for place, length in enumerate(after):
        beyond = after[place + 1 :]
        known = all(isinstance(size, int) for size in (length, *below, *beyond))
        if known and length == before[axis] and prod(beyond) == prod(below):
            return place
    return None


def _axes(given: Any, rank: int) -> list[int]:
    return [each % rank for each in (given if isinstance(given, Sequence) else [given])]


def _pads_others(
    axis: int, rank: int, sides: Sequence[int], mode: str = "constant", value: float | None = None
) -> bool:
    """Whether zeros are added along other axes than the channels'. The sides of the last axis come first."""
    place = 2 * (rank - 1 - axis)
    return mode == "constant" and not value and not any(sides[place : place + 2])
