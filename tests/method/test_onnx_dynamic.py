"""Dynamic quantisation by ONNX Runtime covers convolutions; torch.ao's, its counterpart for TorchScript, does not."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from qexp.artifact import Artifact
from qexp.data.random import RandomData
from qexp.method.artifacts import make_artifact
from qexp.types import Unsupported, UserError
from tests import configured
from tests.method.training import SOURCE, TORCHSCRIPT

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder, engine_spec = tmp_path_factory.mktemp("dynamic"), configured.engine("onnxruntime").spec
    data, network = configured.pretend_data(folder), configured.small_network()
    return make_artifact(configured.method("dynamic"), network, data, engine_spec, SOURCE, folder)


def test_convolutions_and_linear_layers_are_integer_operators(artifact: Artifact) -> None:
    file = artifact.folder / artifact.graph
    onnx.checker.check_model(str(file))
    graph = onnx.load(file).graph
    operators = Counter(node.op_type for node in graph.node)
    assert (operators["ConvInteger"], operators["MatMulInteger"]) == (6, 1)
    assert not {"Conv", "Gemm", "MatMul"} & set(operators)
    weights = [constant for constant in graph.initializer if len(constant.dims) > 1]
    assert len(weights) == 7 and {constant.data_type for constant in weights} == {onnx.TensorProto.UINT8}


def test_convolutions_may_be_left_in_float(pretend_data: RandomData, network: nn.Module, tmp_path: Path) -> None:
    method, engine_spec = configured.method("dynamic", layers="linear"), configured.engine("onnxruntime").spec
    made = make_artifact(method, network, pretend_data, engine_spec, SOURCE, tmp_path)
    operators = Counter(node.op_type for node in onnx.load(made.folder / made.graph).graph.node)
    assert (operators["Conv"], operators["MatMulInteger"], operators["ConvInteger"]) == (6, 1, 0)
    assert {layer.kind: layer.weight for layer in made.layers} == {"conv2d": "float32", "linear": "uint8"}
    assert made.label == "dynamic int8 linear" and made.quantized_macs < 0.01 * made.macs
    with pytest.raises(UserError, match=r"method\.layers=lineal is unknown.*linear"):
        configured.method("dynamic", layers="lineal")


def test_the_layer_table_says_what_is_in_the_graph(artifact: Artifact, network: nn.Module) -> None:
    names = [name for name, module in network.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert [(la.name, la.weight, la.activation) for la in artifact.layers] == [
        (name, "uint8", "uint8") for name in names
    ]
    assert (artifact.method, artifact.bits, artifact.label, artifact.has_qdq) == ("dynamic", 8, "dynamic int8", False)


def test_layers_are_found_whatever_the_graph_calls_their_weights(pretend_data: RandomData, tmp_path: Path) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 8, 4, 4)
            self.of_tokens = nn.Linear(8, 6)  # its weight stands transposed in the graph
            self.same, self.shared = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
            self.shared.weight = self.same.weight
            self.classifier = nn.Linear(6, 10)
            self.unused = nn.Linear(6, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = self.of_tokens(self.patches(x).flatten(2).transpose(1, 2))
            return self.classifier(self.shared(self.same(tokens).relu()).mean(1))

    made = make_artifact(
        configured.method("dynamic"),
        Tokens().eval(),
        pretend_data,
        configured.engine("onnxruntime").spec,
        SOURCE,
        tmp_path,
    )
    # A layer is known by its weight, and one that is not computed is none.
    used = ("patches", "of_tokens", "shared", "classifier")
    assert {layer.name: layer.weight for layer in made.layers} == dict.fromkeys(used, "uint8")
    operators = Counter(node.op_type for node in onnx.load(made.folder / made.graph).graph.node)
    assert (operators["ConvInteger"], operators["MatMulInteger"]) == (1, 4)


def test_logits_stay_near_the_network(artifact: Artifact, pretend_data: RandomData, network: nn.Module) -> None:
    engine = configured.engine("onnxruntime")
    assert engine.lower(artifact, 1, 1).files == artifact.files, "the graph itself is the engine's file"
    x = pretend_data.calibration()[:].numpy()
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()
    error = (
        np.abs(engine.open(artifact.folder / engine.file_name(1, 1), 1)(x) - expected).max() / np.abs(expected).max()
    )
    assert 0.001 < error < 0.1


def test_nothing_but_the_graph_is_left(artifact: Artifact) -> None:
    assert sorted(p.name for p in artifact.folder.iterdir()) == ["artifact.json", "layers.csv", "model.onnx"]
    assert sorted(artifact.files) == ["layers.csv", "model.onnx"]
    assert [p for p in artifact.folder.parent.iterdir() if p.is_dir() and p.name.startswith("small")] == [
        artifact.folder
    ]


@pytest.mark.thorough
def test_logging_is_as_before(artifact: Artifact) -> None:
    assert not logging.getLogger().disabled


def test_bits_16_are_for_torchscript_only(pretend_data: RandomData, network: nn.Module, tmp_path: Path) -> None:
    method = configured.method("dynamic", bits=16, layers="linear", torchscript={"bits": 16})
    made = make_artifact(method, network, pretend_data, TORCHSCRIPT, SOURCE, tmp_path)
    assert {layer.name: layer.weight for layer in made.layers if layer.quantized} == {"classifier": "float16"}
    assert (made.graph, made.label, made.engine_spec.formats) == ("model.ts", "dynamic fp16 linear", ("torchscript",))
    with pytest.raises(Unsupported, match="dynamic works at 8 bits, not at 16"):
        make_artifact(method, network, pretend_data, configured.engine("onnxruntime").spec, SOURCE, tmp_path)
