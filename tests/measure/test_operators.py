"""What engines' profilers tell, in the numbers that a sentence says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from qexp.engine.onnxruntime import computes as computes_in_onnxruntime
from qexp.engine.openvino import computes as computes_in_openvino
from qexp.engine.profiles import CONVERSION, FLOAT, INTEGER, OTHER, profile
from qexp.measure.operators import sentence, share_of
from tests.engine.support import engine_named

ROWS = profile(
    [("Conv", INTEGER, 40.0), ("Conv", INTEGER, 20.0), ("HardSwish", FLOAT, 20.0), ("Softmax", FLOAT, 5.0)] * 2
    + [("Quantize", CONVERSION, 5.0)] * 4 + [("Shape", OTHER, 2.5)] * 4, calls=2,
)["rows"]  # fmt: skip


def test_a_profile_is_of_one_call_with_the_slowest_first() -> None:
    assert [(row["name"], row["calls"], row["self_cpu_time_us"]) for row in ROWS] == [
        ("Conv", 2, 60), ("HardSwish", 1, 20), ("Quantize", 2, 10), ("Softmax", 1, 5), ("Shape", 2, 5),
    ]  # fmt: skip


def test_shares_are_of_the_time_of_all_operators() -> None:
    assert [share_of(ROWS, kind) for kind in (INTEGER, FLOAT, CONVERSION, OTHER)] == [0.6, 0.25, 0.1, 0.05]
    assert share_of([], FLOAT) == 0


def test_the_sentence_says_where_the_time_goes() -> None:
    assert sentence(ROWS) == (
        "60% of the time goes to integers (2 Conv), 25% to floating point (1 HardSwish, 1 Softmax) and 10% to 2 "
        "conversions between formats"
    )
    slow = [("Conv", INTEGER, 40.0), ("HardSwish", FLOAT, 40.0), ("Cast", CONVERSION, 20.0)]
    assert sentence(profile(slow, 1)["rows"]) == (
        "40% of the time goes to floating point (1 HardSwish) and 20% to 1 conversion between formats"
    )
    fast = [("Conv", INTEGER, 90.0), *(("Add", INTEGER, 3.0),) * 2, ("Gelu", FLOAT, 4.0)]
    assert sentence(profile(fast, 1)["rows"]) == "96% of the time goes to integers (1 Conv, 2 Add)"


@pytest.mark.parametrize(
    ("told", "what"),
    [
        ({"op_name": "QLinearConv", "input_type_shape": [{"uint8": [1, 3]}, {"float": []}]}, INTEGER),
        ({"op_name": "MaxPool", "input_type_shape": [{"uint8": [1, 3]}]}, INTEGER),
        ({"op_name": "Conv", "input_type_shape": [{"float": [1, 3]}, {"float": [3]}]}, FLOAT),
        ({"op_name": "QuantizeLinear", "input_type_shape": [{"float": [1]}, {"float": []}, {"uint8": []}]}, CONVERSION),
        ({"op_name": "Concat", "input_type_shape": [{"int64": [1]}]}, OTHER),
    ],
)
def test_what_onnx_runtime_computes_follows_from_its_types(told: dict[str, object], what: str) -> None:
    assert computes_in_onnxruntime(told) == what


@pytest.mark.parametrize(
    ("node", "execution", "what"),
    [
        ("Convolution", "brgconv_avx512_I8", INTEGER), ("Pooling", "jit_avx2_U8", INTEGER),
        ("Convolution", "jit_avx2_FP32", FLOAT), ("MatMul", "gemm_mlas_FP32", FLOAT),
        ("Reorder", "jit_uni_I8", CONVERSION), ("ShapeOf", "ref_any_I32", OTHER),
    ],
)  # fmt: skip
def test_what_openvino_computes_follows_from_its_kernels(node: str, execution: str, what: str) -> None:
    assert computes_in_openvino(node, execution) == what


class Gated(nn.Module):
    """Two convolutions, which take nearly all of the time, and a sigmoid in floating point."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(self.first(x))
        return (y * torch.sigmoid(y)).mean((2, 3))


@pytest.mark.integration
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_the_profiler_of_an_engine_sees_every_convolution(name: str, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    torch.onnx.export(Gated().eval(), (torch.zeros(1, 3, 64, 64),), file, dynamo=True, verbose=False)
    engine, x = engine_named(name), np.zeros((1, 3, 64, 64), np.float32)
    told = engine.operators(file, 1, engine.open(file, 1), x)
    assert told is not None and told["allocated_mib"] is None
    convolutions = [row for row in told["rows"] if row["name"].startswith("Conv")]
    assert sum(row["calls"] for row in convolutions) == 2
    assert {row["computes"] for row in convolutions} == {FLOAT} and convolutions[0] is told["rows"][0]
    assert share_of(told["rows"], FLOAT) > 0.5 and "Conv" in told["text"]
