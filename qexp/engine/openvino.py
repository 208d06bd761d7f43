"""OpenVINO on the CPU: reads the ONNX file that ONNX Runtime reads."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from qexp.coded_file import plain
from qexp.engine.base import Engine, Forward
from qexp.onnx_file import BFLOAT16_OPSET, write_onnx
from qexp.types import Artifact, EngineSpec, Unsupported


class OpenVino(Engine):
    name = "openvino"
    spec = EngineSpec(half=("bfloat16",))
    file = "model.onnx"
    packages = modules = ("openvino",)
    carries_code = False

    def check(self, artifact: Artifact) -> None:
        super().check(artifact)
        if artifact.engine_spec.half:
            import openvino

            if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
                raise Unsupported(
                    "openvino computes in bfloat16 only on processors with instructions for it, and this one has none"
                )

    def write(self, artifact: Artifact, file: Path, batch: int, threads: int) -> None:
        opset = BFLOAT16_OPSET if artifact.engine_spec.half else None
        write_onnx(artifact.folder / artifact.graph, artifact.data.input_shape, file, opset)

    def load(self, file: Path, threads: int) -> Forward:
        return load_model(plain(file), threads)

    def standalone(self) -> tuple[tuple[Callable[..., Any], ...], dict[str, Any]]:
        return (load_model,), {}


def load_model(file: Path | io.BytesIO, threads: int) -> Forward:
    import openvino

    # Left to itself it computes fp32 networks in bfloat16 where the processor can; told f32, it keeps to the graph's own types.
    options: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
    }  # fmt: skip
    core = openvino.Core()
    model = core.read_model(file) if isinstance(file, io.BytesIO) else str(file)
    request = core.compile_model(model, "CPU", options).create_infer_request()

    def run(x: np.ndarray) -> np.ndarray:
        return np.array(next(iter(request.infer([x], share_inputs=True).values())))

    return run
