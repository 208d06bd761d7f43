"""The operators of exported graphs in terms of ncnn's layers."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.fx import GraphModule, Node

from qexp.engine.exported import IDENTITIES, arguments, clipping, pair, shape_of, unsupported
from qexp.engine.ncnn_graph import Translation

MAX, AVERAGE = 0, 1  # ncnn's numbers for poolings
LARGEST, MEAN = 4, 3  # and for reductions
MULTIPLY = 2  # and for elementwise operators
# The order of the axes w, h, c of ncnn's image after a permutation, by those before it; the place is ncnn's number.
ORDERS = ("whc", "hwc", "wch", "cwh", "hcw", "chw")


def write_ncnn(graph: GraphModule, file: Path) -> None:
    """Write a graph that exported.read_graph gave for one image as ncnn's text and numbers, in a ZIP.

    Raises:
        Unsupported: There is no layer for one of the graph's operators.
    """
    Translation(graph).save(file, OPERATORS)


def refused(node: Node, what: str = "") -> Exception:
    return unsupported("ncnn", node, what)


def convolution(t: Translation, node: Node) -> None:
    given, found = arguments(node), t.parameters(node)
    kernel, stride, dilation = found.weight.shape[2:], pair(given["stride"]), pair(given["dilation"])
    params = {0: len(found.weight), 5: int(found.bias is not None), 6: found.weight.size}
    params |= {1: kernel[1], 11: kernel[0], 2: dilation[1], 12: dilation[0], 3: stride[1], 13: stride[0]}
    (top, bottom), (left, right) = _around(given["padding"], kernel, dilation)
    params |= {4: left, 15: right, 14: top, 16: bottom}
    if given["groups"] == 1:
        t.weighted(node, "Convolution", params, found)
        return
    if found.grid is not None and len(found.weight) > given["groups"]:
        raise refused(node, "with integer weights and several channels in a group")
    t.weighted(node, "ConvolutionDepthWise", {**params, 7: given["groups"]}, found)


def _around(padding: Any, kernel: tuple[int, ...], dilation: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """What is put before and behind each axis, which torch may call `same` or `valid`."""
    if padding == "same":
        whole = [distance * (taps - 1) for distance, taps in zip(dilation, kernel, strict=True)]
        return tuple((each // 2, each - each // 2) for each in whole)
    return tuple((each, each) for each in pair(0 if padding == "valid" else padding))


def linear(t: Translation, node: Node) -> None:
    found = t.parameters(node)
    if len(shape_of(node)) > 3:
        raise refused(node, "of images")
    params = {0: len(found.weight), 1: int(found.bias is not None), 2: found.weight.size}
    t.weighted(node, "InnerProduct", params, found)


def clip(t: Translation, node: Node) -> None:
    limits = clipping(node)
    assert limits is not None
    if limits == (0.0, np.inf):
        t.emit(node, "ReLU", [t.read(node.args[0])])
    else:
        t.emit(node, "Clip", [t.read(node.args[0])], {index: float(limit) for index, limit in enumerate(limits)})


def layer(kind: str, t: Translation, node: Node, **params: float) -> None:
    """A layer of one input, with parameters p0, p1, ..."""
    numbers = {int(name.removeprefix("p")): value for name, value in params.items()}
    t.emit(node, kind, [t.read(node.args[0])], numbers)


def gelu(t: Translation, node: Node) -> None:
    layer("GELU", t, node, p0=int(arguments(node)["approximate"] == "tanh"))


def elu(t: Translation, node: Node) -> None:
    given = arguments(node)
    if (given["scale"], given["input_scale"]) != (1, 1):
        raise refused(node, "with factors")
    layer("ELU", t, node, p0=float(given["alpha"]))


def leaky_relu(t: Translation, node: Node) -> None:
    layer("ReLU", t, node, p0=float(arguments(node)["negative_slope"]))


def elementwise(kind: int, t: Translation, node: Node) -> None:
    given = arguments(node)
    if given.get("alpha", 1) != 1 or given.get("rounding_mode") is not None:
        raise refused(node, "with a factor or with rounding")
    left, right, rank = given["self"], given["other"], len(shape_of(node)) - 1
    if not isinstance(right, Node):
        t.emit(node, "BinaryOp", [t.read(left)], {0: kind, 1: 1, 2: float(right)})
        return
    if any(t.is_computed(side) and len(shape_of(side)) != rank + 1 for side in (left, right)):
        raise refused(node, "of tensors with different numbers of axes")
    t.emit(node, "BinaryOp", [t.read(left, rank), t.read(right, rank)], {0: kind})


def pool(kind: int, t: Translation, node: Node) -> None:
    given = arguments(node)
    kernel, stride = pair(given["kernel_size"]), pair(given["stride"] or given["kernel_size"])
    top, left = pair(given["padding"])
    size = kernel[0] * kernel[1]
    if given.get("dilation", 1) not in (1, [1, 1]) or given.get("divisor_override") not in (None, size):
        raise refused(node, "with a dilation or a divisor")
    result = _first(node)
    # In ncnn's mode 0, windows that begin within the image and end outside of it count, as torch's ceil_mode has it.
    params = {0: kind, 1: kernel[1], 11: kernel[0], 2: stride[1], 12: stride[0], 3: left, 13: top}
    params |= {5: 0 if given["ceil_mode"] else 1, 6: int(given.get("count_include_pad", False))}
    t.emit(result, "Pooling", [t.read(given["self"])], params)


def _first(node: Node) -> Node:
    """The node of the first of several results, or the node itself if it has one."""
    if not isinstance(node.meta["val"], tuple | list):
        return node
    return next(user for user in node.users if user.target is operator.getitem and user.args[1] == 0)


def adaptive_pool(t: Translation, node: Node) -> None:
    height, width = shape_of(node)[2:]
    t.emit(node, "Pooling", [t.read(node.args[0])], {0: AVERAGE, 7: 1, 8: width, 18: height})


def reduce(kind: int, t: Translation, node: Node) -> None:
    given = arguments(node)
    rank, dims = len(shape_of(given["self"])), given.get("dim") or ()
    axes = [dim % rank - 1 for dim in dims]
    if not axes or -1 in axes or len(axes) == rank - 1 and not given["keepdim"]:
        raise refused(node, "over images, or over everything of an image")
    params = {0: kind, 1: 0, 3: axes, 4: int(given["keepdim"]), 5: 1}
    t.emit(node, "Reduction", [t.read(given["self"])], params)


def reshape(t: Translation, node: Node) -> None:
    images, *sides = shape_of(node)
    if images != 1 or not 1 <= len(sides) <= 3:
        raise refused(node, f"to {shape_of(node)}")
    t.emit(node, "Reshape", [t.read(node.args[0])], dict(zip((0, 1, 2), sides[::-1], strict=False)))


def permute(t: Translation, node: Node) -> None:
    given, rank = arguments(node), len(shape_of(node))
    axes = list(range(rank))
    if "dims" in given:
        axes = [axis % rank for axis in given["dims"]]
    else:
        a, b = given["dim0"], given["dim1"]
        axes[a], axes[b] = axes[b], axes[a]
    if axes[0] or not 3 <= rank <= 4:
        raise refused(node, "of images, or of more than three axes of an image")
    letters = "chw" if rank == 4 else "hw"
    moved = "".join(letters[axis - 1] for axis in reversed(axes[1:])) + ("c" if rank == 3 else "")
    t.emit(node, "Permute", [t.read(given["self"])], {0: ORDERS.index(moved)})


def concatenate(t: Translation, node: Node) -> None:
    given, rank = arguments(node), len(shape_of(node))
    axis = given["dim"] % rank - 1
    if axis < 0:
        raise refused(node, "of images")
    t.emit(node, "Concat", [t.read(each, rank - 1) for each in given["tensors"]], {0: axis})


def constant_pad(t: Translation, node: Node) -> None:
    given, rank = arguments(node), len(shape_of(node))
    if given.get("mode", "constant") != "constant" or len(given["pad"]) > 2 * (rank - 1):
        raise refused(node, "with anything but a number, or of images")
    sides: list[int] = given["pad"]
    left, right, top, bottom, front, behind = sides + [0] * (6 - len(sides))
    params = {0: top, 1: bottom, 2: left, 3: right, 5: float(given.get("value") or 0), 7: front, 8: behind}
    t.emit(node, "Padding", [t.read(node.args[0])], params)


def cut(t: Translation, node: Node) -> None:
    given = arguments(node)
    sides = shape_of(given["self"])
    dim = given["dim"] % len(sides)
    start, end, step = slice(given["start"], given["end"], given["step"]).indices(sides[dim])
    if (start, end, step) == (0, sides[dim], 1):
        t.names[node] = t.read(given["self"])
        return
    if not dim or step != 1:
        raise refused(node, "of images, or with a step")
    t.emit(node, "Crop", [t.read(given["self"])], {9: [start], 10: [end], 11: [dim - 1]})


def scatter(t: Translation, node: Node) -> None:
    """A part of a tensor that takes the place of all of it, as functional graphs spell a change in place."""
    given = arguments(node)
    if shape_of(given["src"]) != shape_of(given["self"]):
        raise refused(node, "of a part of a tensor")
    t.names[node] = t.read(given["src"])


def split(t: Translation, node: Node) -> None:
    """All parts of a tensor along one axis, each of which is a node."""
    given, start, ends = arguments(node), 0, []
    dim = given["dim"] % len(shape_of(given["self"]))
    for made in node.meta["val"]:
        ends.append((start, start + int(made.shape[dim])))
        start = ends[-1][1]
    for part in node.users:
        first, last = ends[part.args[1]]  # type: ignore[index]
        t.emit(part, "Crop", [t.read(given["self"])], {9: [first], 10: [last], 11: [dim - 1]})


def softmax(t: Translation, node: Node) -> None:
    axis = arguments(node)["dim"] % len(shape_of(node)) - 1
    t.emit(node, "Softmax", [t.read(node.args[0])], {0: axis, 1: 1})


def matmul(t: Translation, node: Node) -> None:
    t.emit(node, "MatMul", [t.read(side) for side in node.args])


def same(t: Translation, node: Node) -> None:
    """What gives its input as it is."""
    if node.meta["val"].dtype != node.args[0].meta["val"].dtype:  # type: ignore[union-attr]
        raise refused(node, f"to {node.meta['val'].dtype}")
    t.names[node] = t.read(node.args[0])


_ELEMENTWISE = {"add": 0, "sub": 1, "mul": MULTIPLY, "div": 3, "maximum": 4, "minimum": 5}
OPERATORS: dict[str, Callable[[Translation, Node], None]] = {
    "conv2d": convolution, "linear": linear, "elu": elu, "gelu": gelu, "leaky_relu": leaky_relu, "softmax": softmax,
    "_softmax": softmax, "matmul": matmul, "bmm": matmul, "mean": partial(reduce, MEAN),
    "amax": partial(reduce, LARGEST), "cat": concatenate, "constant_pad_nd": constant_pad, "pad": constant_pad,
    "slice": cut, "slice_scatter": scatter, "sigmoid": partial(layer, "Sigmoid"), "tanh": partial(layer, "TanH"),
    "silu": partial(layer, "Swish"), "hardswish": partial(layer, "HardSwish", p0=1 / 6, p1=0.5),
    "hardsigmoid": partial(layer, "HardSigmoid", p0=1 / 6, p1=0.5), "exp": partial(layer, "UnaryOp", p0=7),
    "avg_pool2d": partial(pool, AVERAGE), "max_pool2d": partial(pool, MAX),
    "max_pool2d_with_indices": partial(pool, MAX), "adaptive_avg_pool2d": adaptive_pool,
    "_adaptive_avg_pool2d": adaptive_pool,
    **{name: clip for name in ("relu", "relu6", "hardtanh", "clamp")},
    **{name: partial(elementwise, kind) for name, kind in _ELEMENTWISE.items()},
    **{name: split for name in ("split", "split_with_sizes", "chunk", "tensor_split")},
    **{name: permute for name in ("permute", "transpose")},
    **{
        name: reshape
        for name in ("flatten", "view", "reshape", "_unsafe_view", "squeeze", "unsqueeze", "unflatten")
    },
    **{name: same for name in (*IDENTITIES, "_to_copy", "to")},
}  # fmt: skip
