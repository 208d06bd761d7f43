"""OpenVINO on the CPU, which reads the same ONNX file as ONNX Runtime."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qexp.artifact import Artifact, EngineSpec
from qexp.coded_file import decoded
from qexp.engine.base import Engine, Forward
from qexp.engine.profiles import CALLS, CONVERSION, FLOAT, INTEGER, OTHER, WARM_CALLS, profile
from qexp.onnx_file import BFLOAT16_OPSET, write_onnx
from qexp.types import Unsupported

CONVERSIONS = {"Reorder", "Convert", "FakeQuantize"}
UNTIMED = {"Input", "Output", "Parameter", "Result", "Const"}


class OpenVino(Engine):
    """Runs ONNX files with the CPU plugin of OpenVINO."""

    name = "openvino"
    spec = EngineSpec(half=("bfloat16",))
    file = "model.onnx"
    packages = ("openvino",)
    carries_code = False

    def check(self, artifact: Artifact) -> None:
        super().check(artifact)
        if artifact.engine_spec.half:
            import openvino

            if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
                raise Unsupported(
                    "openvino computes in bfloat16 only on processors with instructions for it, and this one has none"
                )

    def write(self, artifact: Artifact, graph: Path, file: Path, batch: int, threads: int) -> None:
        opset = BFLOAT16_OPSET if artifact.engine_spec.half else None
        write_onnx(graph, artifact.data.input_shape, file, opset)

    def load(self, file: Path, threads: int) -> Forward:
        return self.standalone()(file, threads)

    def standalone(self) -> partial[Forward]:
        return partial(load_model)

    def operators(self, file: Path, threads: int, forward: Forward, x: np.ndarray) -> dict[str, Any]:
        with decoded(file) as plain:
            request = make_request(plain, threads, PERF_COUNT=True)
        told: list[tuple[str, str, float]] = []
        for call in range(WARM_CALLS + CALLS):
            request.infer([x], share_inputs=True)
            if call >= WARM_CALLS:
                ran = [node for node in request.profiling_info if node.real_time and node.node_type not in UNTIMED]
                told += [
                    (
                        node.node_type,
                        computes(node.node_type, node.exec_type),
                        node.real_time / timedelta(microseconds=1),
                    )
                    for node in ran
                ]
        return profile(told, CALLS)


def computes(node_type: str, exec_type: str) -> str:
    """What an operator computes, by what OpenVINO tells of it, such as `Convolution` and `brgconv_avx512_I8`."""
    if node_type in CONVERSIONS:
        return CONVERSION
    number = exec_type.rpartition("_")[2].lower()
    if number in ("i8", "u8"):
        return INTEGER
    return FLOAT if number in ("fp32", "f32", "bf16", "f16", "fp16") else OTHER


def load_model(file: Path, threads: int) -> Forward:
    request = make_request(file, threads)

    def forward(x: np.ndarray) -> np.ndarray:
        return np.array(next(iter(request.infer([x], share_inputs=True).values())))

    return forward


def make_request(file: Path, threads: int, **more: Any) -> Any:
    import openvino

    # Left to itself, OpenVINO computes fp32 networks in bfloat16 if the processor can. Told f32, it keeps to the types
    # of the graph.
    options: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32", **more,
    }  # fmt: skip
    try:
        return openvino.Core().compile_model(str(file), "CPU", options).create_infer_request()
    except RuntimeError as error:  # which names lines of OpenVINO's sources first
        what = next((line for line in str(error).splitlines() if line.startswith("[")), str(error))
        raise RuntimeError(f"OpenVINO cannot compile this network: {what[:160]}") from error
