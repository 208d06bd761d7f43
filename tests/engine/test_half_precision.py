"""Half precision: each engine computes in the 16-bit format that it favours, near fp32, from half the bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from qexp.artifact import Artifact
from qexp.data.random import RandomData
from qexp.engine.base import Engine
from qexp.method.artifacts import make_artifact
from qexp.method.base import Method
from qexp.types import Unsupported
from tests import configured
from tests.engine.support import BATCH, engine_named, error, graph_logits, openvino_layers, run
from tests.tiers import more

pytestmark = pytest.mark.integration

Lowered = Callable[[Method, Engine], Artifact]
PRECISION = {
    "bfloat16": 8,
    "float16": 11,
}  # binary digits of a significand (IEEE 754 for float16), the implied one included


def half_for(engine: Engine, lowered: Lowered, dtype: str = "auto") -> Artifact:
    """The network in half precision; skips where OpenVINO finds no bfloat16 instructions."""
    if engine.name == "openvino":
        import openvino

        if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            pytest.skip("this processor has no instructions for bfloat16")
    return lowered(configured.method("half", dtype=dtype), engine)


@pytest.mark.parametrize(
    ("name", "asked", "dtype"),
    [
        ("eager", "auto", "bfloat16"),
        ("eager", "float16", "float16"),
        ("openvino", "auto", "bfloat16"),
        *more(("executorch", "auto", "float16"), ("inductor", "auto", "bfloat16")),
    ],
)
def test_logits_are_wrong_by_the_rounding_of_the_format(
    name: str, asked: str, dtype: str, lowered: Lowered, images: np.ndarray, own_logits: np.ndarray
) -> None:
    engine = engine_named(name)
    artifact = half_for(engine, lowered, asked)
    assert {(layer.weight, layer.activation) for layer in artifact.layers} == {(dtype, dtype)}
    assert (artifact.bits, artifact.label) == (16, {"bfloat16": "bf16", "float16": "fp16"}[dtype])
    logits = run(engine, artifact, images)
    step = 2.0 ** -PRECISION[dtype]  # the largest relative error of rounding once
    # Half a dozen layers round one after the other, and some kernels add up in this format too. An engine that computed
    # in fp32 would be a hundred times better.
    assert logits.dtype == np.float32 and step / 8 < error(logits, own_logits) < 6 * step
    assert error(logits, graph_logits(artifact, images)) < 4 * step


@pytest.mark.parametrize(
    "name", ["eager", "openvino", *more("inductor")]
)  # XNNPACK's convolutions keep their weights in fp32 in the file
def test_a_file_saves_two_bytes_for_each_parameter(name: str, lowered: Lowered) -> None:
    engine = engine_named(name)
    half, full = half_for(engine, lowered), lowered(configured.method("none"), engine)
    sizes = [(artifact.folder / engine.file_name(BATCH, 1)).stat().st_size for artifact in (half, full)]
    assert 1.6 * full.parameters < sizes[1] - sizes[0]


def test_openvino_computes_in_bfloat16_only_what_is_in_bfloat16(
    lowered: Lowered, images: np.ndarray, own_logits: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = configured.engine("openvino")
    full = lowered(configured.method("none"), engine)
    assert error(run(engine, full, images), own_logits) < 1e-5
    assert openvino_layers(engine, full, images, monkeypatch) == {
        ("Convolution", "f32"): 6,
        ("FullyConnected", "f32"): 1,
    }
    half = half_for(engine, lowered)
    assert openvino_layers(engine, half, images, monkeypatch) == {
        ("Convolution", "bf16"): 6,
        ("FullyConnected", "bf16"): 1,
    }


def test_the_onnx_file_is_in_bfloat16(lowered: Lowered) -> None:
    file = half_for(configured.engine("openvino"), lowered).folder / "model.onnx"
    onnx.checker.check_model(str(file), full_check=True)
    weights = [constant for constant in onnx.load(file).graph.initializer if len(constant.dims) > 1]
    assert {constant.data_type for constant in weights} == {onnx.TensorProto.BFLOAT16}


def test_without_bfloat16_instructions_openvino_refuses(lowered: Lowered, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino

    made = lowered(configured.method("half"), configured.engine("eager"))
    monkeypatch.setattr(openvino.Core, "get_property", lambda *a: ["FP32", "INT8"])
    with pytest.raises(Unsupported, match="openvino computes in bfloat16 only on processors with instructions for it"):
        configured.engine("openvino").lower(made, BATCH, 1)
    assert lowered(configured.method("none"), configured.engine("openvino"))


def test_the_graph_itself_takes_and_gives_fp32(lowered: Lowered) -> None:
    artifact = lowered(configured.method("half"), configured.engine("eager"))
    program = torch.export.load(artifact.folder / artifact.graph)
    assert {value.dtype for value in program.state_dict.values()} == {torch.bfloat16}
    with torch.no_grad():
        logits = program.module()(torch.zeros(5, 3, 16, 16))
    assert (logits.shape, logits.dtype) == ((5, 10), torch.float32)


class Normalised(nn.Module):
    """A layer norm of so many channels that ExecuTorch's own in float16 is off by half of its result."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm, self.head = nn.Conv2d(3, 256, 4, 4), nn.LayerNorm(256), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(40 * self.patches(x).flatten(2).transpose(1, 2)).mean(1))


@pytest.mark.thorough
def test_executorch_computes_layer_norms_of_many_channels(pretend_data: RandomData, tmp_path: Path) -> None:
    torch.manual_seed(0)
    engine, network, source = engine_named("executorch"), Normalised().eval(), {"model": "small", "weights": "0123"}
    made = make_artifact(configured.method("half"), network, pretend_data, engine.spec, source, tmp_path)
    artifact, x = engine.lower(made, BATCH, 1), pretend_data.calibration()[:8].numpy()
    assert error(run(engine, artifact, x), graph_logits(artifact, x)) < 0.02
