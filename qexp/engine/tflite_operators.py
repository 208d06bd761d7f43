"""The operators of exported graphs in terms of those that `.tflite` files have."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.fx import GraphModule, Node

from qexp.engine.exported import Grid, arguments, clipping, pair, shape_of
from qexp.engine.tflite_graph import ACTIVATIONS, IMAGE, Result, Translation, Value, identity, real
from qexp.engine.tflite_moving import MOVING, padded, padding_before, refused

CLIPS = {1: "RELU", 2: "RELU_N1_TO_1", 3: "RELU6"}  # operators that only clip, by the schema's number for that
INTEGER = {"ADD", "MUL", "SUB"}  # elementwise operators that compute in integers
CLIPPING = {*INTEGER, "DIV"}  # those that can clip their own result
LARGEST_BIAS = 2.0**30  # what a bias may be in units of its scale, half of what 32 bits hold


def write_tflite(graph: GraphModule, file: Path) -> None:
    """Write a graph that exported.read_graph gave as a `.tflite` file.

    Raises:
        Unsupported: There is no operator for one of the graph's.
    """
    Translation(graph, OPERATORS).save(file)


def convolution(t: Translation, node: Node) -> None:
    given = arguments(node)
    weight, grid = t.constant(given["weight"])
    if weight is None:
        raise refused(node, "with weights that are computed")
    x, channels = t.read(given["input"]), shape_of(given["input"])[1]
    each = given["groups"] == channels > 1  # every channel has filters of its own
    result = t.result(node)
    integers = _in_integers(x, grid, result)
    kernel, stride, dilation = weight.shape[2:], pair(given["stride"]), pair(given["dilation"])
    before = padding_before(given["padding"], kernel, dilation)
    x, padding = padded(t, node, x if integers else t.floats(x), given["input"], kernel, stride, dilation, before)
    options = {
        "padding": padding, "strideH": stride[0], "strideW": stride[1], "dilationHFactor": dilation[0],
        "dilationWFactor": dilation[1], "fusedActivationFunction": result.activation,
    }  # fmt: skip
    if each:
        options["depthMultiplier"] = len(weight) // channels
    kind, axes = ("DEPTHWISE_CONV_2D", (1, 2, 3, 0)) if each else ("CONV_2D", (0, 2, 3, 1))
    _layer(t, node, kind, x, (weight, grid, given["bias"]), axes, integers, result, IMAGE, **options)


def linear(t: Translation, node: Node) -> None:
    given = arguments(node)
    weight, grid = t.constant(given["weight"])
    if weight is None:
        raise refused(node, "with weights that are computed")
    x, result = t.ordered(t.read(given["input"]), identity(given["input"])), t.result(node)
    integers = _in_integers(x, grid, result)
    _layer(
        t, node, "FULLY_CONNECTED", x if integers else t.floats(x), (weight, grid, given["bias"]), (0, 1), integers,
        result, identity(node), keepNumDims=True, fusedActivationFunction=result.activation,
    )  # fmt: skip


def _in_integers(x: Value, weight: Grid | None, result: Result) -> bool:
    """Whether a layer computes in integers: all that it reads and gives is made of them, and 0 stands for no weight."""
    return x.grid is not None and weight is not None and not weight.zero.any() and result.grid is not None


def _layer(
    t: Translation, node: Node, kind: str, x: Value, parameters: tuple[np.ndarray, Grid | None, Any],
    axes: tuple[int, ...], integers: bool, result: Result, order: tuple[int, ...], **options: Any,
) -> None:  # fmt: skip
    """Add a convolution or a linear layer.

    Args:
        t: The translation.
        node: The layer's node.
        kind: The operator.
        x: What it reads.
        parameters: The weight[O,...] with its grid, and the node of the bias[O] or None.
        axes: Which axes of the weight come first, second, ... in the file.
        integers: Whether it computes in integers.
        result: Where its result goes.
        order: The order of the result's axes.
        **options: The operator's options.
    """
    weight, grid, bias_node = parameters
    bias, _ = t.constant(bias_node)
    bias = np.zeros(len(weight), np.float32) if bias is None else bias
    if integers:
        assert x.grid is not None and grid is not None
        weight, grid, bias, bias_grid = _with_integer_bias(weight, grid, bias, x.grid)
        scales = Grid(grid.scale, grid.zero, axes.index(0) if len(grid.scale) > 1 else 0)
        constants = [t.file.constant(weight.transpose(axes), scales), t.file.constant(bias, bias_grid)]
    else:
        weight = weight if grid is None else real(weight, grid)
        constants = [t.file.constant(weight.transpose(axes)), t.file.constant(bias)]
    made = t.emit(node, kind, [x.tensor, *constants], order, result.grid if integers else None, **options)
    t.values[result.node] = made


def _with_integer_bias(
    weight: np.ndarray, grid: Grid, bias: np.ndarray, x: Grid
) -> tuple[np.ndarray, Grid, np.ndarray, Grid]:
    """The weight[O,...] and the bias[O] in integers, whose scale is that of the products of inputs and weights.

    The weights of a channel whose bias does not fit 32 bits then get a larger scale. Only channels with next to no
    weights have so small a scale.
    """
    least = np.abs(bias.astype(np.float64)) / (float(x.scale[0]) * LARGEST_BIAS)
    if len(grid.scale) == 1:
        least = least.max(keepdims=True)
    scale = np.maximum(grid.scale.astype(np.float64), least).astype(np.float32)
    if (scale > grid.scale).any():
        factor = (grid.scale / scale).reshape(-1, *[1] * (weight.ndim - 1))
        weight, grid = np.rint(weight * factor).astype(np.int8), Grid(scale, grid.zero, grid.axis)
    products = x.scale.astype(np.float64) * grid.scale
    integers = np.rint(bias / products).astype(np.int32)
    return weight, grid, integers, Grid(products.astype(np.float32), np.zeros(len(products), np.int64))


def elementwise(kind: str, t: Translation, node: Node) -> None:
    given = arguments(node)
    if given.get("alpha", 1) != 1 or given.get("rounding_mode") is not None:
        raise refused(node, "with a factor or with rounding")
    sides, order = operands(t, node, [given["self"], given["other"]])
    result = t.result(node, clips=kind in CLIPPING)
    integers = kind in INTEGER and result.grid is not None and all(side.grid for side in sides)
    tensors = [(side if integers else t.floats(side)).tensor for side in sides]
    made = t.emit(
        node, kind, tensors, order, result.grid if integers else None, fusedActivationFunction=result.activation
    )
    t.values[result.node] = made


def operands(t: Translation, node: Node, given: list[Any]) -> tuple[list[Value], tuple[int, ...]]:
    """What an elementwise operator reads, with axes in one order, and that order."""
    rank = len(shape_of(node))
    computed = [each for each in given if isinstance(each, Node) and t.constant(each)[0] is None]
    whole = all(len(shape_of(each)) == rank for each in computed)
    order = t.read(computed[0]).order if whole else identity(node)
    found = []
    for each in given:
        if each in computed:
            value = t.read(each)
            found.append(t.ordered(value, order if len(value.order) == rank else identity(each)))
            continue
        values, grid = t.constant(each) if isinstance(each, Node) else (np.array(each, np.float32), None)
        assert values is not None
        if grid is not None and len(grid.scale) > 1:
            values, grid = real(values, grid), None
        laid = values.reshape([1] * (rank - values.ndim) + [*values.shape]).transpose(order)
        found.append(Value(t.file.constant(laid, grid), order, grid))
    return found, order


def clip(t: Translation, node: Node) -> None:
    """Clip what no operator clips by itself."""
    limits, x = clipping(node), t.read(node.args[0])
    assert limits is not None
    kind = CLIPS.get(ACTIVATIONS.get(limits, 0))
    if kind in ("RELU", "RELU6") or (kind and x.grid is None):
        t.emit(node, kind, [x.tensor], x.order, x.grid)
        return
    x = t.floats(x)
    for kind, limit in (("MAXIMUM", limits[0]), ("MINIMUM", limits[1])):
        if np.isfinite(limit):
            x = t.emit(node, kind, [x.tensor, t.file.constant(np.array(limit, np.float32))], x.order)
    t.values[node] = x


def curve(kind: str, t: Translation, node: Node) -> None:
    """An elementwise function of one tensor, in floating point."""
    x, given, options = t.floats(t.read(node.args[0])), arguments(node), dict[str, Any]()
    if kind == "GELU":
        options["approximate"] = given["approximate"] == "tanh"
    if kind == "LEAKY_RELU":
        options["alpha"] = float(given["negative_slope"])
    if kind == "ELU" and (given["alpha"], given["scale"], given["input_scale"]) != (1, 1, 1):
        raise refused(node, "with factors")
    t.emit(node, kind, [x.tensor], x.order, **options)


def silu(t: Translation, node: Node) -> None:
    x = t.floats(t.read(node.args[0]))
    gate = t.emit(node, "LOGISTIC", [x.tensor], x.order)
    t.emit(node, "MUL", [x.tensor, gate.tensor], x.order)


def hardsigmoid(t: Translation, node: Node) -> None:
    """relu6(x + 3) / 6."""
    x = t.floats(t.read(node.args[0]))
    three, sixth = (t.file.constant(np.array(value, np.float32)) for value in (3, 1 / 6))
    shifted = t.emit(node, "ADD", [x.tensor, three], x.order, fusedActivationFunction=ACTIVATIONS[0.0, 6.0])
    t.emit(node, "MUL", [shifted.tensor, sixth], x.order)


def softmax(t: Translation, node: Node) -> None:
    x, given = t.floats(t.read(node.args[0])), arguments(node)
    last = given["dim"] % len(x.order)
    order = (*(axis for axis in range(len(x.order)) if axis != last), last)
    t.emit(node, "SOFTMAX", [t.ordered(x, order).tensor], order, beta=1.0)


def matmul(t: Translation, node: Node) -> None:
    sides = [t.ordered(t.floats(t.read(side)), identity(side)) for side in node.args if isinstance(side, Node)]
    t.emit(node, "BATCH_MATMUL", [side.tensor for side in sides], identity(node))


_CURVES = {
    "sigmoid": "LOGISTIC", "tanh": "TANH", "hardswish": "HARD_SWISH", "gelu": "GELU", "elu": "ELU",
    "leaky_relu": "LEAKY_RELU", "exp": "EXP", "sqrt": "SQRT", "rsqrt": "RSQRT", "abs": "ABS", "neg": "NEG",
}  # fmt: skip
_ELEMENTWISE = {"add": "ADD", "sub": "SUB", "mul": "MUL", "div": "DIV", "maximum": "MAXIMUM", "minimum": "MINIMUM"}
OPERATORS: dict[str, Callable[[Translation, Node], None]] = {
    **MOVING,
    "conv2d": convolution, "linear": linear, "matmul": matmul, "bmm": matmul, "silu": silu,
    "hardsigmoid": hardsigmoid, "softmax": softmax, "_softmax": softmax,
    **{name: clip for name in ("relu", "relu6", "hardtanh", "clamp")},
    **{name: partial(curve, kind) for name, kind in _CURVES.items()},
    **{name: partial(elementwise, kind) for name, kind in _ELEMENTWISE.items()},
}  # fmt: skip
