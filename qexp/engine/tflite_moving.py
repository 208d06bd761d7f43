"""The operators of exported graphs that move, compare or average values, in terms of those of `.tflite` files."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from torch.fx import Node

from qexp.engine.exported import IDENTITIES, Grid, arguments, pair, rounded_to, shape_of, unsupported
from qexp.engine.tflite_graph import IMAGE, INT8, Translation, Value, identity

SAME, VALID = 0, 1  # the schema's numbers for paddings


def refused(node: Node, what: str = "") -> Exception:
    return unsupported("litert", node, what)


def padding_before(padding: Any, kernel: tuple[int, ...], dilation: tuple[int, int]) -> tuple[int, int]:
    """How much is put before the first row and column, which torch may call `same` or `valid`."""
    if padding == "valid":
        return 0, 0
    if padding == "same":
        return dilation[0] * (kernel[0] - 1) // 2, dilation[1] * (kernel[1] - 1) // 2
    return pair(padding)


def padded(
    t: Translation, node: Node, x: Value, source: Node, kernel: Any, stride: tuple[int, int],
    dilation: tuple[int, int], before: tuple[int, int], lowest: bool = False,
) -> tuple[Value, int]:  # fmt: skip
    """The image that a window goes over, and the schema's number for the padding that is left to the operator.

    `SAME` puts as much around an image as strides need, and one more behind it than before it if that is odd. Where
    torch puts something else around it, an operator of its own does.

    Args:
        t: The translation.
        node: The operator with the window.
        x: What it reads.
        source: The node of that.
        kernel: Height and width of the window.
        stride: Its steps.
        dilation: The distances within it.
        before: What torch puts before the first row and column.
        lowest: Whether that is the lowest number instead of 0.
    """
    x, around, same = t.ordered(x, IMAGE), [(0, 0)], True
    sides = zip(shape_of(source)[2:], _image_sides(node), kernel, stride, dilation, before, strict=True)
    for side, made, taps, step, distance, first in sides:
        extent = distance * (taps - 1) + 1
        around.append((first, max((made - 1) * step + extent - side - first, 0)))
        rows = -(-side // step)
        same &= made == rows and first == max((rows - 1) * step + extent - side, 0) // 2
    around.append((0, 0))
    if not np.any(around):
        return x, VALID
    return (x, SAME) if same else (pad(t, x, around, lowest), VALID)


def _image_sides(node: Node) -> tuple[int, ...]:
    """Height and width of the result, which is the first of several of some operators."""
    made = node.meta["val"]
    return tuple(int(side) for side in (made[0] if isinstance(made, tuple | list) else made).shape[2:])


def pad(t: Translation, x: Value, around: Any, lowest: bool = False) -> Value:
    """Put zeros, or the lowest number, before and behind each axis, in the order in which these lie in memory."""
    shape = np.array(t.file.tensors[x.tensor].shape) + np.sum(around, axis=1)
    made = t.file.tensor(shape, np.int8 if x.grid else np.float32, x.grid)
    inputs = [x.tensor, t.file.constant(np.array(around, np.int32))]
    if lowest:
        fill = np.array([INT8.min], np.int8) if x.grid else np.array([np.finfo(np.float32).min], np.float32)
        inputs.append(t.file.constant(fill, x.grid))
    return Value(t.file.operator("PADV2" if lowest else "PAD", inputs, made), x.order, x.grid)


def max_pool(t: Translation, node: Node) -> None:
    given = arguments(node)
    kernel, dilation = pair(given["kernel_size"]), pair(given["dilation"])
    if dilation != (1, 1):
        raise refused(node, "with a dilation")
    stride, before = pair(given["stride"] or kernel), pair(given["padding"])
    x = t.read(given["self"])
    x, padding = padded(t, node, x, given["self"], kernel, stride, dilation, before, lowest=True)
    target = _parts(node)[0][0] if isinstance(node.meta["val"], tuple | list) else node
    _pool(t, target, "MAX_POOL_2D", x, kernel, stride, padding)


def _pool(
    t: Translation, node: Node, kind: str, x: Value, kernel: tuple[int, int], stride: tuple[int, int], padding: int
) -> None:
    options = {"filterHeight": kernel[0], "filterWidth": kernel[1], "strideH": stride[0], "strideW": stride[1]}
    t.emit(node, kind, [x.tensor], IMAGE, x.grid, padding=padding, **options)


def average_pool(t: Translation, node: Node) -> None:
    given = arguments(node)
    source, kernel, before = given["self"], pair(given["kernel_size"]), pair(given["padding"])
    stride, divisor = pair(given["stride"] or kernel), given["divisor_override"]
    sides = zip(shape_of(source)[2:], shape_of(node)[2:], kernel, stride, before, strict=True)
    within = all((made - 1) * step + taps <= side + 2 * first for side, made, taps, step, first in sides)
    if within and (given["count_include_pad"] or before == (0, 0) or divisor):
        _average(t, node, source, kernel, stride, before, divisor or kernel[0] * kernel[1])
        return
    x, padding = padded(t, node, t.read(source), source, kernel, stride, (1, 1), before)
    if padding != SAME or divisor or given["count_include_pad"]:
        raise refused(node, f"with padding={before}, ceil_mode and stride={stride}")
    _pool(t, node, "AVERAGE_POOL_2D", x, kernel, stride, padding)


def adaptive_average_pool(t: Translation, node: Node) -> None:
    source = node.args[0]
    assert isinstance(source, Node)
    sides, made = shape_of(source)[2:], shape_of(node)[2:]
    if made == (1, 1):
        _mean(t, node, source, (2, 3), keep=True)
        return
    if any(side % count for side, count in zip(sides, made, strict=True)):
        raise refused(node, f"from {sides} to {made}, which do not divide")
    kernel = sides[0] // made[0], sides[1] // made[1]
    _average(t, node, source, kernel, kernel, (0, 0), kernel[0] * kernel[1])


def _average(
    t: Translation, node: Node, source: Node, kernel: tuple[int, int], stride: tuple[int, int],
    before: tuple[int, int], divisor: int,
) -> None:  # fmt: skip
    """An average over windows, as a convolution of each channel with ones, which rounds once and to any scale.

    The operator for it would round to the scale of what it reads.
    """
    channels, grid, x = shape_of(source)[1], rounded_to(t.graph, node), t.read(source)
    integers = x.grid is not None and grid is not None
    x, padding = padded(t, node, x if integers else t.floats(x), source, kernel, stride, (1, 1), before)
    ones, zeros = np.ones((1, *kernel, channels)), np.zeros(channels)
    if integers:
        assert x.grid is not None
        share = np.full(channels, 1 / divisor, np.float32)
        none = np.zeros(channels, np.int64)
        weight = t.file.constant(ones.astype(np.int8), Grid(share, none, 3))
        bias = t.file.constant(zeros.astype(np.int32), Grid(x.grid.scale * share, none))
    else:
        weight = t.file.constant((ones / divisor).astype(np.float32))
        bias = t.file.constant(zeros.astype(np.float32))
    t.emit(
        node, "DEPTHWISE_CONV_2D", [x.tensor, weight, bias], IMAGE, grid if integers else None, padding=padding,
        strideH=stride[0], strideW=stride[1], depthMultiplier=1, dilationHFactor=1, dilationWFactor=1,
    )  # fmt: skip


def mean(t: Translation, node: Node) -> None:
    given = arguments(node)
    _mean(t, node, given["self"], given.get("dim") or (), given.get("keepdim", False))


def _mean(t: Translation, node: Node, source: Node, dims: Any, keep: bool) -> None:
    grid, x = rounded_to(t.graph, node), t.read(source)
    integers = x.grid is not None and grid is not None
    _reduce(t, node, "MEAN", x if integers else t.floats(x), dims, keep, grid if integers else None)


def largest(t: Translation, node: Node) -> None:
    given = arguments(node)
    x = t.read(given["self"])
    _reduce(t, node, "REDUCE_MAX", x, given["dim"], given["keepdim"], x.grid)


def _reduce(t: Translation, node: Node, kind: str, x: Value, dims: Any, keep: bool, grid: Grid | None) -> None:
    gone = {dim % len(x.order) for dim in dims} or {*x.order}
    axes = t.file.constant(np.array([i for i, axis in enumerate(x.order) if axis in gone], np.int32))
    left = [axis for axis in x.order if keep or axis not in gone]
    order = tuple(sorted(left).index(axis) for axis in left)
    t.emit(node, kind, [x.tensor, axes], order, grid, keepDims=keep)


def reshape(t: Translation, node: Node) -> None:
    source, shape = node.args[0], shape_of(node)
    assert isinstance(source, Node)
    x, sides = t.read(source), shape_of(source)
    long = [axis for axis in x.order if sides[axis] > 1]
    if long != sorted(long):  # otherwise values lie in memory as the graph counts them
        x = t.ordered(x, identity(source))
    if x.order == identity(source) and shape == sides:
        t.values[node] = x
        return
    made = t.file.constant(np.array(shape, np.int32))
    t.emit(node, "RESHAPE", [x.tensor, made], identity(node), x.grid, newShape=list(shape))


def permute(t: Translation, node: Node) -> None:
    """Axes in another order, which moves nothing in memory until an operator needs it."""
    given, x = arguments(node), t.read(node.args[0])
    axes = list(range(len(x.order)))
    if "dims" in given:
        axes = [axis % len(axes) for axis in given["dims"]]
    else:
        a, b = (given.get(f"dim{i}", given.get(f"axis{i}", i)) for i in range(2))
        axes[a], axes[b] = axes[b], axes[a]
    t.values[node] = Value(x.tensor, tuple(axes.index(axis) for axis in x.order), x.grid)


def concatenate(t: Translation, node: Node) -> None:
    given = arguments(node)
    parts = [t.read(each) for each in given["tensors"]]
    dim, order = given["dim"] % len(parts[0].order), parts[0].order
    grid = rounded_to(t.graph, node)
    if grid is None or not all(part.grid for part in parts):
        grid = None
        parts = [t.floats(part) for part in parts]
    else:
        parts = [part if grid.same_as(part.grid) else t.rounded(part, grid) for part in parts]
    tensors = [t.ordered(part, order).tensor for part in parts]
    t.emit(node, "CONCATENATION", tensors, order, grid, axis=order.index(dim))


def constant_pad(t: Translation, node: Node) -> None:
    given, x = arguments(node), t.read(node.args[0])
    if given.get("mode", "constant") != "constant" or given.get("value"):
        raise refused(node, "with anything but zeros")
    rank, sides = len(x.order), list(given["pad"])
    around = {rank - 1 - i // 2: (sides[i], sides[i + 1]) for i in range(0, len(sides), 2)}
    t.values[node] = pad(t, x, [around.get(axis, (0, 0)) for axis in x.order])


def cut(t: Translation, node: Node) -> None:
    """A part of a tensor along one axis."""
    given = arguments(node)
    dim = given["dim"] % len(shape_of(given["self"]))
    limits = slice(given["start"], given["end"], given["step"]).indices(shape_of(given["self"])[dim])
    _cut(t, node, given["self"], dim, *limits)


def _cut(t: Translation, node: Node, source: Node, dim: int, start: int, end: int, step: int = 1) -> None:
    x, sides = t.read(source), shape_of(source)
    limits = [(start, end, step) if axis == dim else (0, sides[axis], 1) for axis in x.order]
    constants = [t.file.constant(np.array(values, np.int32)) for values in zip(*limits, strict=True)]
    t.emit(node, "STRIDED_SLICE", [x.tensor, *constants], x.order, x.grid)


def scatter(t: Translation, node: Node) -> None:
    """A part of a tensor that takes the place of all of it, as functional graphs spell a change in place."""
    given = arguments(node)
    if shape_of(given["src"]) != shape_of(given["self"]):
        raise refused(node, "of a part of a tensor")
    t.values[node] = t.read(given["src"])


def select(t: Translation, node: Node) -> None:
    """One index along an axis, which is gone then."""
    given = arguments(node)
    source = given["self"]
    sides, x = shape_of(source), t.ordered(t.read(source), identity(source))
    dim, index = given["dim"] % len(sides), given["index"]
    index = index % sides[dim]
    limits = [(index, index + 1, 1) if axis == dim else (0, side, 1) for axis, side in enumerate(sides)]
    constants = [t.file.constant(np.array(values, np.int32)) for values in zip(*limits, strict=True)]
    t.emit(node, "STRIDED_SLICE", [x.tensor, *constants], identity(node), x.grid, shrinkAxisMask=1 << dim)


def split(t: Translation, node: Node) -> None:
    """All parts of a tensor along one axis, each of which is a node."""
    given, start = arguments(node), 0
    source = given["self"]
    dim = given["dim"] % len(shape_of(source))
    for index, made in enumerate(node.meta["val"]):
        end = start + int(made.shape[dim])
        for part in _parts(node).get(index, ()):
            _cut(t, part, source, dim, start, end)
        start = end


def _parts(node: Node) -> dict[int, list[Node]]:
    """The nodes that take one of several results, by its number."""
    found: dict[int, list[Node]] = {}
    for user in node.users:
        if user.target is operator.getitem:
            found.setdefault(int(user.args[1]), []).append(user)  # type: ignore[arg-type]
    return found


def same(t: Translation, node: Node) -> None:
    """What gives its input as it is."""
    if node.meta["val"].dtype != node.args[0].meta["val"].dtype:  # type: ignore[union-attr]
        raise refused(node, f"to {node.meta['val'].dtype}")
    t.values[node] = t.read(node.args[0])


MOVING: dict[str, Callable[[Translation, Node], None]] = {
    "max_pool2d": max_pool, "max_pool2d_with_indices": max_pool, "avg_pool2d": average_pool,
    "adaptive_avg_pool2d": adaptive_average_pool, "_adaptive_avg_pool2d": adaptive_average_pool, "mean": mean,
    "amax": largest, "cat": concatenate, "constant_pad_nd": constant_pad, "pad": constant_pad, "slice": cut,
    "select": select, "slice_scatter": scatter,
    **{name: split for name in ("split", "split_with_sizes", "chunk", "tensor_split")},
    **{name: permute for name in ("permute", "transpose", "swapaxes", "t")},
    **{
        name: reshape
        for name in ("flatten", "view", "reshape", "_unsafe_view", "squeeze", "unsqueeze", "unflatten")
    },
    **{name: same for name in (*IDENTITIES, "_to_copy", "to")},
}  # fmt: skip
