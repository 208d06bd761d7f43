"""Layer tables, packed sizes, keys and reuse of artifacts."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from qexp.artifact import Artifact, EngineSpec
from qexp.data.random import RandomData
from qexp.engine.base import Engine
from qexp.method.artifacts import make_artifact
from qexp.method.base import Compressed, Method, counterpart
from qexp.method.graph import count_macs, export, graph_of, layer_table
from qexp.method.none import NoCompression
from qexp.types import Unsupported, UserError
from tests import configured
from tests.method.training import SOURCE, TORCHSCRIPT

pytestmark = pytest.mark.integration  # compresses whole networks


def test_macs_match_the_count_by_hand(pretend_data: RandomData, network: nn.Module) -> None:
    # height x width of the result x output channels x input channels x kernel area
    by_hand = {
        "stem.0": 16 * 16 * 8 * 3 * 9,
        "blocks.0.body.0": 16 * 16 * 8 * 8 * 9,
        "blocks.0.body.3": 16 * 16 * 8 * 8 * 9,
        "blocks.1.body.0": 8 * 8 * 16 * 8 * 9,
        "blocks.1.body.3": 8 * 8 * 16 * 16 * 9,
        "blocks.1.shortcut.0": 8 * 8 * 16 * 8,
        "classifier": 16 * 10,
    }
    layers = layer_table(graph_of(export(network, pretend_data)), network, pretend_data)
    assert {layer.name: layer.macs for layer in layers} == by_hand and count_macs(network, pretend_data) == sum(
        by_hand.values()
    )


def test_counting_leaves_modules_that_are_called_twice_as_they_were(pretend_data: RandomData) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())
            self.other = nn.Sequential(self.one, nn.Conv2d(3, 10, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.other(self.one(x)).mean((2, 3))

    network = Twice().eval()
    assert count_macs(network, pretend_data) == 2 * 16 * 16 * 3 * 27 + 14 * 14 * 10 * 27
    assert all(isinstance(module.weight, nn.Parameter) for module in network.modules() if isinstance(module, nn.Conv2d))
    export(network, pretend_data)


def test_operations_outside_of_layers_count_as_not_quantised(pretend_data: RandomData, tmp_path: Path) -> None:
    class WithProduct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores = nn.Parameter(torch.randn(10, 20))
            self.layer = nn.Linear(3 * 16 * 16, 20)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.flatten(1)) @ self.scores.T

    artifact = make_artifact(
        configured.torchscript("dynamic", layers="linear"),
        WithProduct().eval(),
        pretend_data,
        TORCHSCRIPT,
        SOURCE,
        tmp_path,
    )
    assert artifact.macs == 768 * 20 + 20 * 10
    assert sum(layer.macs for layer in artifact.layers) == 768 * 20
    assert artifact.parameters == 768 * 20 + 20 + 200


def test_packed_size_is_the_bits_of_every_tensor(pretend_data: RandomData, network: nn.Module, tmp_path: Path) -> None:
    artifact = make_artifact(
        configured.method("static", reduce_range=False), network, pretend_data, EngineSpec(), SOURCE, tmp_path
    )
    weights = {n: p for n, p in network.named_parameters() if p.ndim > 1}
    int8_bytes = sum(p.numel() for p in weights.values())
    scale_bytes = 4 * sum(p.shape[0] for p in weights.values())
    rest_bytes = 4 * sum(p.numel() for n, p in network.named_parameters() if n not in weights)
    assert artifact.packed_bytes == int8_bytes + scale_bytes + rest_bytes
    plain = make_artifact(configured.method("none"), network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    assert plain.packed_bytes == 4 * sum(p.numel() for p in network.parameters())


def test_dynamic_quantisation_leaves_convolutions_in_float(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path
) -> None:
    artifact = make_artifact(
        configured.torchscript("dynamic", layers="linear"), network, pretend_data, TORCHSCRIPT, SOURCE, tmp_path
    )
    assert {layer.name for layer in artifact.layers if layer.quantized} == {"classifier"}
    half = make_artifact(
        configured.torchscript("dynamic", bits=16, layers="linear"),
        network,
        pretend_data,
        TORCHSCRIPT,
        SOURCE,
        tmp_path,
    )
    assert {layer.weight for layer in half.layers if layer.quantized} == {"float16"}
    assert (artifact.label, half.label) == ("dynamic int8 linear", "dynamic fp16 linear")


def test_classic_static_quantises_every_layer(pretend_data: RandomData, network: nn.Module, tmp_path: Path) -> None:
    method = configured.method("static")
    artifact = make_artifact(method, network, pretend_data, TORCHSCRIPT, SOURCE, tmp_path)
    assert all(layer.weight == "int8" for layer in artifact.layers) and artifact.graph == "model.ts"
    assert (artifact.folder / "model.ts").stat().st_size < sum(4 * p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("method", "engine_spec", "reason"),
    [
        (
            configured.torchscript("dynamic", bits=3, layers="linear"),
            TORCHSCRIPT,
            "dynamic works at 8 and 16 bits, not at 3",
        ),
        (
            configured.torchscript("dynamic", layers="linear"),
            EngineSpec(),
            "dynamic gives torchscript, and this engine reads pt2",
        ),
        (
            configured.method("dynamic"),
            EngineSpec(),
            "dynamic gives onnx and torchscript, and this engine reads pt2",
        ),
        (configured.method("dynamic", bits=16), EngineSpec(("pt2", "onnx")), "dynamic works at 8 bits, not at 16"),
        (configured.method("static", bits=16), EngineSpec(), "static works at 2 to 8 bits, .* not at 16"),
        (
            configured.method("static", torchscript=None),
            TORCHSCRIPT,
            "static gives pt2, and this engine reads torchscript",
        ),
        (configured.torchscript("static", fuse=False), TORCHSCRIPT, "torch_ao always fuses"),
        (configured.torchscript("dynamic"), TORCHSCRIPT, "linear layers alone at each call; give method.layers=linear"),
    ],
)
def test_what_cannot_exist_is_unsupported_with_its_reason(
    method: Method, engine_spec: EngineSpec, reason: str, pretend_data: RandomData, network: nn.Module, tmp_path: Path
) -> None:
    with pytest.raises(Unsupported, match=reason):
        make_artifact(method, network, pretend_data, engine_spec, SOURCE, tmp_path)
    assert not list(tmp_path.glob("small*"))


def test_an_engine_gets_the_counterpart_that_it_reads() -> None:
    method = configured.method("dynamic")
    assert counterpart(method, configured.engine("onnxruntime").spec) is method
    assert counterpart(method, TORCHSCRIPT) is method.torchscript
    assert counterpart(method, EngineSpec(("torchscript", "onnx"))) is method, "the method itself comes first"


ENGINES = [
    configured.engine("eager"),
    configured.engine("onnxruntime"),
    configured.engine("openvino"),
    configured.engine("inductor"),
    configured.engine("executorch"),
    configured.engine("tensorrt"),
    configured.engine("litert"),
    configured.engine("ncnn"),
    configured.engine("torch_ao", kernels="x86"),
    configured.engine("torch_ao", kernels="fbgemm"),
]


@pytest.mark.parametrize(
    ("method", "groups"),
    [
        (
            configured.method("none"),
            "eager onnxruntime openvino inductor executorch tensorrt litert ncnn | torch_ao | torch_ao",
        ),
        (
            configured.method("static"),
            "eager onnxruntime openvino | inductor | executorch litert | tensorrt | ncnn | torch_ao | torch_ao",
        ),
        (configured.method("half"), "eager openvino inductor | executorch tensorrt"),
        (configured.method("half", dtype="float16"), "eager inductor executorch tensorrt"),
        (configured.method("dynamic"), "onnxruntime"),
        (configured.method("dynamic", layers="linear"), "onnxruntime | torch_ao | torch_ao"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_engines_share_an_artifact_where_they_need_the_same(method: Method, groups: str) -> None:
    shared: dict[EngineSpec, list[str]] = {}
    for engine in ENGINES:
        with suppress(Unsupported):
            form = counterpart(method, engine.spec).resolve(engine.spec)
            assert engine.spec.reads(form), f"{engine.name} does not read what was made for it"
            shared.setdefault(form, []).append(engine.name)
    assert " | ".join(" ".join(names) for names in shared.values()) == groups


@pytest.mark.parametrize(
    ("method", "maker", "readers"),
    [
        (
            configured.method("none"),
            configured.engine("eager"),
            "eager onnxruntime openvino inductor executorch tensorrt litert ncnn",
        ),
        (
            configured.method("none"),
            configured.engine("executorch"),
            "eager onnxruntime openvino inductor executorch tensorrt litert ncnn",
        ),
        (configured.method("static"), configured.engine("onnxruntime"), "eager onnxruntime openvino"),
        (configured.method("static"), configured.engine("inductor"), "inductor"),
        (configured.method("static"), configured.engine("executorch"), "executorch litert"),
        (configured.method("static"), configured.engine("ncnn"), "ncnn"),
        (configured.method("static"), configured.engine("tensorrt"), "tensorrt"),
        (configured.method("half"), configured.engine("openvino"), "eager openvino inductor"),
        (configured.method("half"), configured.engine("executorch"), "eager inductor executorch tensorrt"),
        (configured.method("dynamic"), configured.engine("onnxruntime"), "onnxruntime"),
        (configured.torchscript("none"), configured.engine("torch_ao", kernels="x86"), "x86"),
        (configured.torchscript("none"), configured.engine("torch_ao", kernels="fbgemm"), "fbgemm"),
    ],
)
def test_an_engine_reads_what_was_made_for_its_kernels(method: Method, maker: Engine, readers: str) -> None:
    form = method.resolve(maker.spec)
    assert " ".join(getattr(e, "kernels", e.name) for e in ENGINES if e.spec.reads(form)) == readers
    assert EngineSpec.from_json(json.loads(json.dumps(asdict(form)))) == form


@pytest.mark.thorough
def test_engines_with_the_same_needs_find_the_same_folder(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path
) -> None:
    def folder(method: Method, engine: Engine) -> Path:
        return make_artifact(method, network, pretend_data, engine.spec, SOURCE, tmp_path).folder

    eager, onnxruntime, openvino, inductor, executorch = ENGINES[:5]
    none, static = configured.method("none"), configured.method("static")
    assert folder(static, eager) == folder(static, onnxruntime) == folder(static, openvino)
    assert len({folder(static, engine) for engine in (eager, inductor, executorch)}) == 3
    assert len({folder(none, engine) for engine in (eager, inductor, executorch)}) == 1


@pytest.mark.parametrize("bits", [0, 1, 33, -8, "eight", 7.5])
def test_bits_out_of_range_are_an_error(bits: object) -> None:
    with pytest.raises(UserError, match="out of range"):
        configured.method("static", bits=bits)  # type: ignore[arg-type]


def test_none_is_fp32_whatever_bits_says() -> None:
    assert instantiate(configured.composed("method=none", "bits=4").method).bits == 32


class Counting(NoCompression):
    applied = 0

    def apply(self, network: nn.Module, data: RandomData, engine_spec: EngineSpec, folder: Path) -> Compressed:  # type: ignore[override]
        Counting.applied += 1
        return super().apply(network, data, engine_spec, folder)


def test_the_same_inputs_are_compressed_once(pretend_data: RandomData, network: nn.Module, tmp_path: Path) -> None:
    Counting.applied = 0
    first = make_artifact(Counting(torchscript=None), network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    again = make_artifact(Counting(torchscript=None), network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    other = make_artifact(
        Counting(torchscript=None), network, pretend_data, EngineSpec(), {**SOURCE, "weights": "abc"}, tmp_path
    )
    assert Counting.applied == 2
    assert first == again and first.folder != other.folder


class Interrupted(NoCompression):
    def apply(self, network: nn.Module, data: RandomData, engine_spec: EngineSpec, folder: Path) -> Compressed:  # type: ignore[override]
        (folder / "model.pt2").write_bytes(b"half")
        raise KeyboardInterrupt


def test_an_interrupted_compression_leaves_no_artifact(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        make_artifact(Interrupted(torchscript=None), network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.suffix == ".pt2"]
    make_artifact(configured.method("none"), network, pretend_data, EngineSpec(), SOURCE, tmp_path)


def test_an_artifact_that_was_changed_is_refused(pretend_data: RandomData, network: nn.Module, tmp_path: Path) -> None:
    artifact = make_artifact(configured.method("none"), network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    content = bytearray((artifact.folder / "model.pt2").read_bytes())
    content[len(content) // 2] ^= 1
    (artifact.folder / "model.pt2").write_bytes(content)
    with pytest.raises(UserError, match="model.pt2 is missing or was changed"):
        make_artifact(configured.method("none"), network, pretend_data, EngineSpec(), SOURCE, tmp_path)


def test_every_artifact_names_its_fp32_reference(pretend_data: RandomData, network: nn.Module, tmp_path: Path) -> None:
    plain = make_artifact(configured.method("none"), network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    static = make_artifact(configured.method("static"), network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    traced = make_artifact(configured.method("none"), network, pretend_data, TORCHSCRIPT, SOURCE, tmp_path)
    assert {plain.reference, static.reference, traced.reference} == {plain.folder.name}


def test_artifacts_hold_no_pickles_and_read_back_the_same(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path
) -> None:
    artifact = make_artifact(configured.method("static"), network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    assert Artifact.read(artifact.folder) == artifact
    assert sorted(p.name for p in artifact.folder.iterdir()) == [
        "artifact.json",
        "histograms.npz",
        "layers.csv",
        "model.pt2",
    ]
    with np.load(artifact.folder / "histograms.npz", allow_pickle=False) as histograms:
        assert {histograms[name].dtype for name in histograms} == {np.dtype("float64"), np.dtype("int64")}
    with torch.no_grad():
        assert torch.export.load(artifact.folder / "model.pt2").module()(torch.zeros(5, 3, 16, 16)).shape == (5, 10)


def test_a_network_that_export_cannot_trace_is_a_clear_error(pretend_data: RandomData, tmp_path: Path) -> None:
    class Leaving(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(x.numpy()).flatten(1)[:, :10]

    with pytest.raises(UserError, match="torch.export cannot trace Leaving"):
        make_artifact(configured.method("none"), Leaving(), pretend_data, EngineSpec(), SOURCE, tmp_path)
