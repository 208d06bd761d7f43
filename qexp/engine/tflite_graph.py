"""Translates exported graphs into `.tflite` files.

Images lie in memory as [B,H,W,C] there, and as [B,C,H,W] in the graph. A value therefore knows which axis of the graph
each of its axes is, and is transposed where an operator needs another order. A value of integers stays so until an
operator without a kernel for integers reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.fx import GraphModule, Node

from qexp.engine.exported import (
    Grid,
    clipping,
    constant,
    grid_of,
    is_dequantize,
    is_quantize,
    operator_name,
    rounded_to,
    shape_of,
    sole_reader,
    unsupported,
)
from qexp.engine.tflite_file import TfliteFile

IMAGE = (0, 2, 3, 1)  # the order of an image's axes in memory: [B,H,W,C]
# The ranges to which operators can clip their own result, and the schema's number for each.
ACTIVATIONS = {(0.0, np.inf): 1, (-1.0, 1.0): 2, (0.0, 6.0): 3}
INT8 = np.iinfo(np.int8)


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor in the file.

    Attributes:
        tensor: Its number.
        order: Which axis of the graph's tensor each of its axes is.
        grid: What its integers stand for, or None if it is in floating point.
    """

    tensor: int
    order: tuple[int, ...]
    grid: Grid | None = None


@dataclass(frozen=True, eq=False)
class Result:
    """Where the result of an operator goes.

    Attributes:
        node: The node whose value it is: the operator's own or, if that clips the result, the next one.
        activation: The schema's number for the clipping that belongs to the operator.
        grid: The integers that everything rounds it to, or None.
    """

    node: Node
    activation: int
    grid: Grid | None


class Translation:
    """Translates one graph.

    Args:
        graph: The graph, whose nodes have example values of one batch size, as exported.read_graph gives it.
        operators: What translates a node, by the name of the operator that it calls.
    """

    def __init__(self, graph: GraphModule, operators: Mapping[str, Callable[[Translation, Node], None]]):
        self.graph, self.operators, self.file = graph, operators, TfliteFile()
        self.values: dict[Node, Value] = {}
        self.converted: dict[tuple[int, tuple[int, ...] | None], Value] = {}

    def save(self, file: Path) -> None:
        """Translate the whole graph and write the file, with the input `x` and the output `logits`.

        Raises:
            Unsupported: There is no operator for one of the graph's.
        """
        nodes = list(self.graph.graph.nodes)
        for node in nodes:
            if node in self.values or node.op in ("get_attr", "output"):
                continue
            if node.op == "placeholder":
                self.values[node] = Value(self.file.tensor(shape_of(node), np.float32, name="x"), identity(node))
            elif is_quantize(node):
                self._quantize(node)
            elif is_dequantize(node):
                if constant(self.graph, node.args[0]) is None:
                    self.values[node] = self.values[node.args[0]]
            elif (translate := self.operators.get(operator_name(node))) is None:
                raise unsupported("litert", node)
            else:
                translate(self, node)
        (x,) = (self.values[node].tensor for node in nodes if node.op == "placeholder")
        (answer,) = (node.args[0] for node in nodes if node.op == "output")
        (logits,) = answer if isinstance(answer, list | tuple) else (answer,)
        result = self.ordered(self.floats(self.read(logits)), identity(logits)).tensor
        self.file.tensors[result].name = "logits"
        self.file.save(file, [x], [result])

    def _quantize(self, node: Node) -> None:
        """Round a value, unless the operator that computed it has done so."""
        value, grid = self.read(node.args[0]), grid_of(self.graph, node)
        self.values[node] = value if grid.same_as(value.grid) else self.rounded(value, grid)

    def rounded(self, value: Value, grid: Grid) -> Value:
        """The value as integers."""
        made = self.file.tensor(self.file.tensors[value.tensor].shape, np.int8, grid)
        return Value(self.file.operator("QUANTIZE", [value.tensor], made), value.order, grid)

    def read(self, node: Any) -> Value:
        """The value of a node, which may be a constant in the graph, in floating point or as integers."""
        if node not in self.values:
            values, grid = self.constant(node)
            assert values is not None
            whole = grid if grid is not None and len(grid.scale) == 1 else None
            if grid is not None and whole is None:
                values = real(values, grid)
            self.values[node] = Value(self.file.constant(values, whole), tuple(range(values.ndim)), whole)
        return self.values[node]

    def constant(self, node: Any) -> tuple[np.ndarray | None, Grid | None]:
        """The constant that a node stands for, with what it stands for if it is made of integers."""
        rounded = isinstance(node, Node) and is_dequantize(node)
        values = constant(self.graph, node.args[0] if rounded else node)
        if values is None:
            return None, None
        return (values.numpy(), grid_of(self.graph, node)) if rounded else (values.float().numpy(), None)

    def floats(self, value: Value) -> Value:
        """The value in floating point."""
        if value.grid is None:
            return value
        if (value.tensor, None) not in self.converted:
            made = self.file.tensor(self.file.tensors[value.tensor].shape, np.float32)
            self.file.operator("DEQUANTIZE", [value.tensor], made)
            self.converted[value.tensor, None] = Value(made, value.order)
        return self.converted[value.tensor, None]

    def ordered(self, value: Value, order: tuple[int, ...]) -> Value:
        """The value with its axes in another order."""
        if value.order == order:
            return value
        if (value.tensor, order) not in self.converted:
            axes = np.array([value.order.index(axis) for axis in order], np.int32)
            shape = [self.file.tensors[value.tensor].shape[axis] for axis in axes]
            made = self.file.tensor(shape, np.int8 if value.grid else np.float32, value.grid)
            self.file.operator("TRANSPOSE", [value.tensor, self.file.constant(axes)], made)
            self.converted[value.tensor, order] = Value(made, order, value.grid)
        return self.converted[value.tensor, order]

    def result(self, node: Node, clips: bool = True) -> Result:
        """Where the result of a node goes.

        Args:
            node: The node.
            clips: Whether its operator can clip its own result.
        """
        reader = sole_reader(node)
        if not clips or reader is None or (clip := clipping(reader)) is None:
            return Result(node, 0, rounded_to(self.graph, node))
        grid = rounded_to(self.graph, reader)
        if grid is not None and _covers(clip, grid):
            return Result(reader, 0, grid)
        if clip in ACTIVATIONS:
            return Result(reader, ACTIVATIONS[clip], grid)
        return Result(node, 0, None)

    def emit(
        self, node: Node, kind: str, inputs: Sequence[int], order: tuple[int, ...], grid: Grid | None = None,
        **options: Any,
    ) -> Value:  # fmt: skip
        """Add the operator that computes the value of a node.

        Args:
            node: The node.
            kind: The operator's name in the schema.
            inputs: Numbers of the tensors that it reads.
            order: The order of the result's axes.
            grid: The integers that it gives, or None for floating point.
            **options: The operator's options.
        """
        shape = [shape_of(node)[axis] for axis in order]
        made = self.file.tensor(shape, np.int8 if grid else np.float32, grid)
        self.values[node] = Value(self.file.operator(kind, inputs, made, **options), order, grid)
        return self.values[node]


def identity(node: Node) -> tuple[int, ...]:
    return tuple(range(len(shape_of(node))))


def real(integers: np.ndarray, grid: Grid) -> np.ndarray:
    """The numbers that integers stand for, in float32."""
    shape = [-1 if axis == grid.axis else 1 for axis in range(integers.ndim)]
    zero, scale = grid.zero.reshape(shape), grid.scale.reshape(shape)
    return ((integers.astype(np.int64) - zero) * scale).astype(np.float32)


def _covers(clip: tuple[float, float], grid: Grid) -> bool:
    """Whether every number that the integers can stand for lies within a range, but for the rounding of its ends."""
    scale, zero = float(grid.scale[0]), int(grid.zero[0])
    low, high = (INT8.min - zero) * scale, (INT8.max - zero) * scale
    return clip[0] <= low + scale / 2 and high - scale / 2 <= clip[1]
