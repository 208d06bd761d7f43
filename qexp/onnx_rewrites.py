"""Rewrites of ONNX graphs, most of them with quantize/dequantize pairs, after which runtimes compute what they say.

None of them changes a number. They were found necessary with OpenVINO 2026.4 and ONNX Runtime 1.31.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import replace_all_uses_with

# Operators that only move or repeat values: of all their inputs, or of the first.
MOVING = {
    "Concat", "Expand", "Gather", "GatherND", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip
# Operators that only compare values, so that these can be rounded before as well as after.
COMPARING = {"ReduceMax", "ReduceMin"}
# Layers whose fp32 weights ONNX Runtime rounds.
REWEIGHTED = {"Conv", "ConvTranspose", "Gemm"}
# Activations that fall somewhere, so that the largest of their results is not that of the largest value. Sigmoid is a
# part of SiLU, and those with a slope for negative values fall where it is below 0, as learned ones may be.
FALLING = {"Abs", "Gelu", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Sigmoid", "Swish"}


def count_images(graph: ir.Graph) -> None:
    """Compute the number of images as the number of all values of the input over that of one image, in place.

    Where it is read from a shape, OpenVINO reads it from the result of the first convolution instead, and then gives
    all channels of that convolution the bias of the first.

    Args:
        graph: A graph whose input is x[B,C,H,W], of which only B is free.
    """
    (x,) = graph.inputs
    assert x.shape is not None
    values = np.array([math.prod([side for side in x.shape[1:] if isinstance(side, int)])])
    for node in list(graph):
        asked = {name: attribute.value for name, attribute in node.attributes.items()}
        if node.op_type == "Shape" and node.inputs[0] is x and asked == {"start": 0, "end": 1}:
            size = ir.Node("", "Size", [x])
            per_image = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor(values))])
            images = ir.Node("", "Div", [size.outputs[0], per_image.outputs[0]])
            graph.insert_before(node, [size, per_image, images])
            _replace(graph, node, images.outputs[0])


def move_integers(graph: ir.Graph) -> None:
    """Let operators that move integers read these instead of floating-point numbers, in place.

    Values that are compared with each other, or padded with another number than 0, are rounded before that, and what
    was rounded is not rounded again.

    OpenVINO otherwise moves scales and zero points through each of these operators, and then crashes, or cannot compile
    the network, behind some concatenations and paddings. It compares values that it rounds afterwards as integers
    without their scale.
    """
    for node in reversed(list(graph)):
        if _rounds_alike(graph, node):
            _round_before(graph, node)
    for node in list(graph):
        source = _dequantize_before(node) if node.op_type == "QuantizeLinear" else None
        if source and node.inputs[1:] == source.inputs[1:]:
            _replace(graph, node, _value(source.inputs[0]))
            if not source.outputs[0].uses():
                graph.remove(source, safe=True)


def keep_in_floating_point(graph: ir.Graph) -> None:
    """Let layers with fp32 weights read what they read with a scale for each channel, all of them the same, in place.

    ONNX Runtime otherwise rounds the weights of convolutions and linear layers whose input has a single scale to 8
    bits, with one scale for all of them (its optimizer WeightBiasQuantization).
    """
    for node in list(graph):
        source = _dequantize_before(node) if node.op_type in REWEIGHTED else None
        weight = node.inputs[1].const_value if source and node.inputs[1] else None
        if source is None or weight is None:
            continue
        _, scale, zero = source.inputs
        if not (scale and scale.const_value and zero and zero.const_value):
            continue
        channels = _channels_read(node, weight.shape.numpy())
        each = [np.full(channels, value.const_value.numpy()) for value in (scale, zero) if value.const_value]
        made = [ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor(values))]) for values in each]
        inputs = [source.inputs[0], *(constant.outputs[0] for constant in made)]
        own = ir.Node("", "DequantizeLinear", inputs, [ir.AttrInt64("axis", 1)])
        own.outputs[0].type, own.outputs[0].shape = source.outputs[0].type, source.outputs[0].shape
        graph.insert_before(node, [*made, own])
        node.replace_input_with(0, own.outputs[0])
        if not source.outputs[0].uses():
            graph.remove(source, safe=True)


def hold_poolings(graph: ir.Graph) -> None:
    """Put an operator that changes nothing between poolings and activations that fall somewhere, in place.

    OpenVINO otherwise moves such an activation through the pooling into the layer before it, as if it were monotone.
    """
    for node in list(graph):
        if node.op_type != "MaxPool" or _dequantize_before(node):
            continue
        pooled = node.outputs[0]
        readers = [*pooled.uses()]
        if any(reader.op_type in FALLING for reader, _ in readers):
            dtype = pooled.dtype or ir.DataType.FLOAT
            least = -65504.0 if dtype == ir.DataType.FLOAT16 else -3e38
            value = ir.tensor(np.array(least).astype(dtype.numpy()))
            lowest = ir.Node("", "Constant", [], [ir.AttrTensor("value", value)])
            held = ir.Node("", "Max", [pooled, lowest.outputs[0]])
            held.outputs[0].type, held.outputs[0].shape = pooled.type, pooled.shape
            graph.insert_after(node, [lowest, held])
            for reader, place in readers:
                reader.replace_input_with(place, held.outputs[0])


def _channels_read(node: ir.Node, shape: Sequence[int]) -> int:
    """How many channels a layer reads, whose weight has this shape."""
    if node.op_type == "Conv":
        group = node.attributes.get("group")
        return shape[1] * (group.as_int() if group else 1)
    if node.op_type == "ConvTranspose":
        return shape[0]
    turned = node.attributes.get("transB")
    return shape[1] if turned and turned.as_int() else shape[0]


def _rounds_alike(graph: ir.Graph, node: ir.Node) -> bool:
    """Whether an operator moves or compares values, all readers round its result alike, and all it moves was so too."""
    readers = [reader for output in node.outputs for reader, _ in output.uses()]
    if not readers or {*node.outputs} & {*graph.outputs}:
        return False
    parameters = readers[0].inputs[1:]
    if any(r.op_type != "QuantizeLinear" or r.inputs[1:] != parameters for r in readers):
        return False
    padding = _padding(node) if node.op_type == "Pad" else None
    if node.op_type in COMPARING or (padding is not None and padding.any()):
        return all(parameter and parameter.const_value for parameter in parameters)
    sources = [_dequantize_before(node, index) for index in _moved(node)]
    moved = all(source and source.inputs[1:] == parameters for source in sources)
    return moved and node.op_type in MOVING and (node.op_type != "Pad" or padding is not None)


def _moved(node: ir.Node) -> Iterable[int]:
    """Which inputs of an operator hold the values that it moves."""
    return range(len(node.inputs)) if node.op_type == "Concat" else range(1)


def _padding(node: ir.Node) -> np.ndarray | None:
    """The number that a padding puts around what it moves, or None if it is computed."""
    given = node.inputs[2] if len(node.inputs) > 2 else None
    if given is None:
        return np.zeros((), np.float32)
    return given.const_value.numpy() if given.const_value else None


def _round_before(graph: ir.Graph, node: ir.Node) -> None:
    """Round what an operator moves or compares instead of its result."""
    readers = [reader for output in node.outputs for reader, _ in output.uses()]
    _, scale, zero = readers[0].inputs
    integers = readers[0].outputs[0].type
    for index in _moved(node):
        rounded = ir.Node("", "QuantizeLinear", [node.inputs[index], scale, zero], readers[0].attributes)
        rounded.outputs[0].type = integers
        graph.insert_before(node, rounded)
        node.replace_input_with(index, rounded.outputs[0])
    if node.op_type == "Pad":
        node.resize_inputs(max(3, len(node.inputs)))
        node.replace_input_with(2, _rounded_padding(graph, node, scale, zero))
    for output in node.outputs:
        output.type = integers
    for reader in readers:
        _replace(graph, reader, _value(reader.inputs[0]))


def _rounded_padding(graph: ir.Graph, node: ir.Node, scale: ir.Value | None, zero: ir.Value | None) -> ir.Value:
    """The integer that stands for what a padding puts around integers of this scale and zero point."""
    padding = _padding(node)
    assert padding is not None and scale and scale.const_value and zero and zero.const_value
    if not padding.any():
        return zero
    limits = np.iinfo(zero.const_value.dtype.numpy())
    integer = np.rint(padding / scale.const_value.numpy()) + zero.const_value.numpy()
    constant = np.clip(integer, limits.min, limits.max).astype(limits.dtype)
    made = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor(constant))])
    graph.insert_before(node, made)
    return made.outputs[0]


def _dequantize_before(node: ir.Node, index: int = 0) -> ir.Node | None:
    source = _value(node.inputs[index]).producer()
    return source if source and source.op_type == "DequantizeLinear" else None


def _replace(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Let everything that reads the result of a node read another value."""
    replace_all_uses_with(node.outputs[0], value)
    graph.remove(node, safe=True)


def _value(given: ir.Value | None) -> ir.Value:
    assert given is not None, "no operator here leaves out its first input"
    return given
