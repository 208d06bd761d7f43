"""Rewrites of ONNX graphs: ONNX Runtime, without its own optimisations, computes the same before and after."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from qexp.onnx_rewrites import count_images, hold_poolings, keep_in_floating_point, move_integers

X = np.random.default_rng(0).normal(size=(3, 2, 4, 4)).astype(np.float32)
NUMBERS = {
    "scale": np.float32(0.02), "other_scale": np.float32(0.03), "zero": np.uint8(120), "axes": np.array([2]),
    "sides": np.array([-1, 4, 8]), "starts": np.array([1]), "ends": np.array([3]),
    "pads": np.array([0, 0, 1, 0, 0, 0, 0, 2]), "index": np.array([3, 0]), "repeats": np.array([3, 2, 4, 4]),
    "one": np.float32(1),
}  # fmt: skip
MOVES: dict[str, tuple[str, list[str], dict[str, object]]] = {
    "concatenation": ("Concat", ["d", "d"], {"axis": 1}),
    "expansion": ("Expand", ["d", "repeats"], {}),
    "gathering": ("Gather", ["d", "index"], {"axis": 2}),
    "padding": ("Pad", ["d", "pads"], {}),
    "padding with ones": ("Pad", ["d", "pads", "one"], {}),
    "reflected padding": ("Pad", ["d", "pads"], {"mode": "reflect"}),
    "reshaping": ("Reshape", ["d", "sides"], {}),
    "slicing": ("Slice", ["d", "starts", "ends", "axes"], {}),
    "transposition": ("Transpose", ["d"], {"perm": [0, 2, 1, 3]}),
    "largest values": ("ReduceMax", ["x", "axes"], {"keepdims": 0}),
    "smallest values": ("ReduceMin", ["x", "axes"], {"keepdims": 1}),
}


def rounded(source: str, name: str, scale: str = "scale") -> list[onnx.NodeProto]:
    """A quantize/dequantize pair, of which the second result is called `name`."""
    return [
        helper.make_node("QuantizeLinear", [source, scale, "zero"], [f"{name}_integers"]),
        helper.make_node("DequantizeLinear", [f"{name}_integers", scale, "zero"], [name]),
    ]


def model(*nodes: onnx.NodeProto, **more: np.ndarray) -> onnx.ModelProto:
    """A network of images x[B,2,4,4] that gives `y`, with NUMBERS and more as constants."""
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *X.shape[1:]])]
    made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in (NUMBERS | more).items()]
    graph = helper.make_graph(list(nodes), "graph", given, made, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def run(network: onnx.ModelProto, x: np.ndarray = X, optimised: bool = False) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(network.SerializeToString(), options).run(None, {"x": x})[0]


def moved(network: onnx.ModelProto) -> onnx.ModelProto:
    made = ir.from_proto(onnx.shape_inference.infer_shapes(network))
    move_integers(made.graph)
    proto = ir.to_proto(made)
    onnx.checker.check_model(proto, full_check=True)
    return proto


@pytest.mark.parametrize("name", MOVES)
def test_what_moves_or_compares_integers_reads_them(name: str) -> None:
    kind, inputs, attributes = MOVES[name]
    before = rounded("x", "d") if "d" in inputs else []
    network = model(*before, helper.make_node(kind, inputs, ["m"], **attributes), *rounded("m", "y"))  # type: ignore[arg-type]
    found = moved(network)
    np.testing.assert_array_equal(run(found), run(network))
    kinds = [node.op_type for node in found.graph.node if node.op_type != "Constant"]
    assert kinds == ["QuantizeLinear", kind, "DequantizeLinear"]


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("Transpose", ["d"], ["m"]), *rounded("m", "y", "other_scale")],
        [helper.make_node("Transpose", ["x"], ["m"]), *rounded("m", "y")],
        [helper.make_node("Sigmoid", ["d"], ["m"]), *rounded("m", "y")],
        [helper.make_node("Transpose", ["d"], ["m"]), *rounded("m", "r"), helper.make_node("Add", ["m", "r"], ["y"])],
    ],
    ids=["another scale", "floating point", "another operator", "two readers"],
)
def test_other_operators_stay_as_they_are(nodes: list[onnx.NodeProto]) -> None:
    network = model(*rounded("x", "d"), *nodes)
    found = moved(network)
    np.testing.assert_array_equal(run(found), run(network))
    assert Counter(n.op_type for n in found.graph.node) == Counter(n.op_type for n in network.graph.node)


def test_images_are_counted_by_their_values() -> None:
    network = model(
        helper.make_node("Shape", ["x"], ["batch"], start=0, end=1),
        helper.make_node("Concat", ["batch", "ends"], ["shape"], axis=0),
        helper.make_node("Expand", ["one", "shape"], ["y"]),
    )
    made = ir.from_proto(network)
    count_images(made.graph)
    found = ir.to_proto(made)
    kinds = [node.op_type for node in found.graph.node if node.op_type != "Constant"]
    assert kinds == ["Size", "Div", "Concat", "Expand"]
    for batch in (1, 3):
        assert run(found, X[:batch]).shape == (batch, 3)


UNEVEN = {
    "Conv": ((4, 1, 1, 1), {"group": 2}),
    "ConvTranspose": ((2, 4, 1, 1), {}),
    "Gemm": ((32, 5), {}),
    "Gemm with a turned weight": ((5, 32), {"transB": 1}),
}


@pytest.mark.parametrize("name", UNEVEN)
def test_fp32_weights_stay_fp32_in_onnx_runtime(name: str) -> None:
    shape, attributes = UNEVEN[name]
    kind, (values, bias) = (
        name.split()[0],
        (np.random.default_rng(1).normal(size=size).astype(np.float32) for size in (shape, 5)),
    )
    values.flat[0] = 1000  # after which 8 bits leave nothing of the others, if all share a scale
    flat = [helper.make_node("Flatten", ["x"], ["f"])] if kind == "Gemm" else []
    layer = helper.make_node(kind, ["d", "weight", *["bias"] * len(flat)], ["m"], **attributes)
    network = model(*flat, *rounded("f" if flat else "x", "d"), layer, *rounded("m", "y"), weight=values, bias=bias)
    made = ir.from_proto(onnx.shape_inference.infer_shapes(network))
    move_integers(made.graph)
    keep_in_floating_point(made.graph)
    found = ir.to_proto(made)
    onnx.checker.check_model(found, full_check=True)
    np.testing.assert_array_equal(run(found), run(network))
    np.testing.assert_allclose(run(found, optimised=True), run(network), atol=0.03)


ACTIVATIONS = {
    **{kind: [helper.make_node(kind, ["p"], ["y"])] for kind in ("Abs", "Gelu", "HardSwish", "Mish")},
    "SiLU": [helper.make_node("Sigmoid", ["p"], ["s"]), helper.make_node("Mul", ["p", "s"], ["y"])],
    "LeakyRelu": [helper.make_node("LeakyRelu", ["p"], ["y"], alpha=-0.3)],
    "PRelu": [helper.make_node("PRelu", ["p", "slope"], ["y"])],
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_openvino_pools_before_activations_that_are_not_monotone(name: str) -> None:
    openvino = pytest.importorskip("openvino")
    weight = np.random.default_rng(1).normal(size=(8, 2, 3, 3)).astype(np.float32)
    network = model(
        helper.make_node("Conv", ["x", "weight"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        *ACTIVATIONS[name],
        weight=weight,
        slope=np.full((1, 1, 1), -0.5, np.float32),
    )
    made = ir.from_proto(onnx.shape_inference.infer_shapes(network))
    hold_poolings(made.graph)
    found = ir.to_proto(made)
    onnx.checker.check_model(found, full_check=True)
    np.testing.assert_array_equal(run(found), run(network))
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(found.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    (result,) = compiled(X).values()
    np.testing.assert_allclose(result, run(network), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_poolings_in_16_bits_are_held_in_16_bits(dtype: int) -> None:
    x, y = (helper.make_tensor_value_info(name, dtype, None) for name in ("x", "y"))
    nodes = [
        helper.make_node("MaxPool", ["x"], ["p"], kernel_shape=[2, 2]), helper.make_node("Gelu", ["p"], ["y"]),
    ]  # fmt: skip
    graph = helper.make_graph(nodes, "g", [x], [y], value_info=[helper.make_tensor_value_info("p", dtype, None)])
    made = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)]))
    hold_poolings(made.graph)
    (constant,) = (node for node in made.graph if node.op_type == "Constant")
    lowest = constant.attributes["value"].as_tensor()
    assert lowest.dtype == dtype and np.isfinite(lowest.numpy().astype(float)) and lowest.numpy().astype(float) < -6e4


def test_poolings_before_other_operators_stay_as_they_are() -> None:
    for after in ("Relu", "Neg"):
        network = model(
            helper.make_node("MaxPool", ["x"], ["p"], kernel_shape=[2, 2]), helper.make_node(after, ["p"], ["y"])
        )
        made = ir.from_proto(network)
        hold_poolings(made.graph)
        assert [node.op_type for node in ir.to_proto(made).graph.node] == ["MaxPool", after]
