"""Int8 graphs: every engine computes what the graph says, and with integer kernels."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from qexp.artifact import Artifact
from qexp.data.random import RandomData
from qexp.engine.base import Engine
from qexp.engine.inductor import Inductor
from qexp.method.artifacts import make_artifact
from qexp.method.base import Method
from tests import configured
from tests.engine.support import BATCH, engine_named, error, graph_logits, openvino_layers, run
from tests.tiers import more

pytestmark = pytest.mark.integration

Lowered = Callable[[Method, Engine], Artifact]
CONVOLUTIONS, ADDITIONS = 6, 2  # of the network, beside one linear layer
FOUR_STEPS = (
    4 / 127
)  # of logits in 8 bits: a value on the edge of two steps may be rounded to the other side in any layer


@pytest.fixture(scope="module")
def lowered(lowered: Lowered, small: nn.Module, data: RandomData, tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    """As that of all tests of engines, but a process that does nothing else packages int8 for Inductor.

    It has imported what lowering imports and nothing more, and is to find the integer kernels nevertheless.
    """
    root = tmp_path_factory.mktemp("alone")

    def make(method: Method, engine: Engine) -> Artifact:
        if not (isinstance(engine, Inductor) and engine.packaged and method.name == "static"):
            return lowered(method, engine)
        made = make_artifact(method, small, data, engine.spec, {"model": "small", "weights": "random"}, root)
        if engine.file_name(BATCH, 1) not in made.files:
            script = f"""
from pathlib import Path
from qexp.engine.inductor import Inductor
from qexp.artifact import Artifact
Inductor(device="cpu", packaged=True).lower(Artifact.read(Path({str(made.folder)!r})), {BATCH}, 1)
"""
            subprocess.run([sys.executable, "-c", script], check=True)
        return Artifact.read(made.folder)

    return make


@pytest.mark.parametrize(
    "name", ["eager", "onnxruntime", "openvino", "litert", "ncnn", *more("executorch", "inductor")]
)
def test_an_engine_computes_what_the_graph_says(
    name: str, lowered: Lowered, images: np.ndarray, own_logits: np.ndarray
) -> None:
    engine = engine_named(name)
    artifact = lowered(configured.method("static"), engine)
    reference = graph_logits(artifact, images)
    assert error(run(engine, artifact, images), reference) < FOUR_STEPS
    assert 0.001 < error(reference, own_logits) < 0.1, "something was quantised"


@pytest.mark.parametrize(
    ("method", "least", "most"),
    [
        (configured.torchscript("static"), 0.001, 0.1),
        (configured.torchscript("dynamic", layers="linear"), 0.0005, 0.02),
        (configured.torchscript("dynamic", bits=16, layers="linear"), 1e-6, 2**-11),
    ],
    ids=["static", "dynamic int8", "dynamic fp16"],
)
def test_classic_kernels_stay_near_the_network(
    method: Method, least: float, most: float, lowered: Lowered, images: np.ndarray, own_logits: np.ndarray
) -> None:
    engine = engine_named("torch_ao")
    assert least < error(run(engine, lowered(method, engine), images), own_logits) < most


def test_openvino_executes_convolutions_on_integers(
    lowered: Lowered, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_named("openvino")
    layers = openvino_layers(engine, lowered(configured.method("static"), engine), images, monkeypatch)
    assert layers == {("Convolution", "u8"): CONVOLUTIONS, ("FullyConnected", "u8"): 1}


@pytest.mark.thorough
def test_inductor_calls_integer_kernels_only(lowered: Lowered) -> None:
    engine = engine_named("inductor")
    integer, plain = (
        kernels(lowered(method, engine), engine) for method in (configured.method("static"), configured.method("none"))
    )
    assert integer and all(re.match("_(qconv|qlinear)", kernel) for kernel in integer), integer
    assert {kernel[:5] for kernel in integer} == {"_qcon", "_qlin"}
    assert plain and not any("_q" in kernel for kernel in plain), plain


def kernels(artifact: Artifact, engine: Engine) -> set[str]:
    """Names of torch's convolutions and products that the package's machine code calls."""
    with zipfile.ZipFile(artifact.folder / engine.file_name(BATCH, 1)) as package:
        code = b"".join(package.read(name) for name in package.namelist() if name.endswith(".so"))
    return {name.decode() for name in re.findall(rb"aoti_torch_cpu_(?:mkldnn_)?(\w*(?:conv|linear|mm)\w*)", code)}


@pytest.mark.thorough
def test_executorch_delegates_everything_to_integer_kernels(
    lowered: Lowered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_named("executorch")
    outside, inside = program(engine, lowered(configured.method("static"), engine), tmp_path, monkeypatch)
    assert outside == []
    assert inside == {
        ("XNNConvert", "fp32", "", "qint8"): 1,
        ("XNNStaticTranspose", "qint8", "", "qint8"): 2,
        ("XNNConv2d", "qint8", "qcint8", "qint8"): CONVOLUTIONS,
        ("XNNAdd", "qint8", "", "qint8"): ADDITIONS,
        ("XNNGlobalAvgPooling2d", "qint8", "", "qint8"): 1,
        ("XNNStaticReshape", "qint8", "", "qint8"): 1,
        ("XNNFullyConnected", "qint8", "qcint8", "qint8"): 1,
        ("XNNConvert", "qint8", "", "fp32"): 1,
    }


@pytest.mark.thorough
def test_executorch_computes_in_half_precision(
    lowered: Lowered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_named("executorch")
    outside, inside = program(engine, lowered(configured.method("half"), engine), tmp_path, monkeypatch)
    assert set(outside) == {"dim_order_ops::_to_dim_order_copy"}  # to float16 and back
    assert {(types[1], types[3]) for types in inside} == {("fp16", "fp16")}


def program(
    engine: Engine, artifact: Artifact, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], Counter[tuple[str, str, str, str]]]:
    """Return the operators of an ExecuTorch program outside of the delegate, and those within it.

    Of those within it, it gives the kind and the types of input, weights and output.
    """
    from executorch.backends.xnnpack import xnnpack_preprocess
    from executorch.exir._serialize._program import deserialize_pte_binary

    delegates = []
    serialize = xnnpack_preprocess.serialize_xnnpack_binary

    def recorded(graph: Any, *others: Any) -> Any:
        delegates.append(graph)
        return serialize(graph, *others)

    with monkeypatch.context() as patch:
        patch.setattr(xnnpack_preprocess, "serialize_xnnpack_binary", recorded)
        engine.write(artifact, artifact.folder / artifact.graph, folder / "model.pte", BATCH, 1)
    (delegate,) = delegates
    tensors = [getattr(value.xvalue_union, "tensor_value", value.xvalue_union) for value in delegate.xvalues]
    types = {tensor.id_out: tensor.datatype.name.removeprefix("xnn_datatype_") for tensor in tensors}

    def of(node: object, *names: str) -> str:
        return next((types[getattr(node, name)] for name in names if hasattr(node, name)), "")

    nodes = [node.xnode_union for node in delegate.xnodes]
    inside = [(type(n).__name__, of(n, "input_id", "input1_id"), of(n, "filter_id"), of(n, "output_id")) for n in nodes]
    (plan,) = deserialize_pte_binary((folder / "model.pte").read_bytes()).program.execution_plan
    return [operator.name for operator in plan.operators], Counter(inside)


@pytest.mark.thorough
def test_a_graph_for_tensorrt_is_symmetric(lowered: Lowered, images: np.ndarray, own_logits: np.ndarray) -> None:
    artifact = lowered(configured.method("static"), configured.engine("tensorrt"))  # written here, executed on a GPU
    file = artifact.folder / "model.onnx"
    onnx.checker.check_model(str(file), full_check=True)
    graph = onnx.load(file).graph
    constants = {constant.name: onnx.numpy_helper.to_array(constant) for constant in graph.initializer}
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    zeros = [constants[node.input[2]] for node in pairs]
    assert len(pairs) > 2 * CONVOLUTIONS and all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    assert all((constants[node.input[1]] > 0).all() for node in pairs)
    weights = [constants[node.input[0]] for node in pairs if node.input[0] in constants]
    assert len([w for w in weights if w.ndim > 1]) == CONVOLUTIONS + 1 and all(
        w.dtype == np.int8 for w in weights if w.ndim > 1
    )

    options = (
        onnxruntime.SessionOptions()
    )  # in float: int8 x int8 products may not fit the 16 bits that some processors add them in
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    reference = graph_logits(artifact, images)
    assert error(session.run(None, {"x": images})[0], reference) < FOUR_STEPS
    assert 0.001 < error(reference, own_logits) < 0.1


def test_graphs_for_processors_are_not_symmetric(lowered: Lowered) -> None:
    artifact = lowered(configured.method("static"), engine_named("onnxruntime"))
    graph = onnx.load(artifact.folder / "model.onnx").graph
    constants = {constant.name: onnx.numpy_helper.to_array(constant) for constant in graph.initializer}
    zeros = [constants[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert any(zero.any() for zero in zeros) and {zero.dtype for zero in zeros} == {np.dtype(np.uint8)}


@pytest.mark.parametrize(
    ("method", "name", "spelt_out"),
    [
        (configured.method("static"), "onnxruntime", True),
        pytest.param(configured.method("static"), "inductor", True, marks=pytest.mark.thorough),
        *more((configured.method("static"), "executorch", True)),
        (configured.method("none"), "eager", False),
        (configured.method("half"), "eager", False),
        *more(
            (configured.method("dynamic"), "onnxruntime", False),
            (configured.method("static"), "torch_ao", False),
            (configured.method("none"), "torch_ao", False),
        ),
    ],
)
def test_parity_is_judged_where_the_graph_spells_out_the_integers(
    method: Method, name: str, spelt_out: bool, lowered: Lowered
) -> None:
    assert lowered(method, engine_named(name)).has_qdq == spelt_out


@pytest.mark.thorough
def test_inductor_compiles_at_the_first_call_too(lowered: Lowered, images: np.ndarray) -> None:
    engine = configured.engine("inductor", packaged=False)
    artifact = lowered(configured.method("static"), engine)
    assert engine.file_name(BATCH, 1) == artifact.graph, "there is no file of its own"
    with torch._inductor.config.patch(freezing=False):  # put back afterwards
        assert error(run(engine, artifact, images), graph_logits(artifact, images)) < FOUR_STEPS
