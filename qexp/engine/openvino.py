"""OpenVINO on the CPU, which reads the same ONNX file as ONNX Runtime."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qexp.artifact import Artifact, EngineSpec
from qexp.engine.base import Engine, Forward
from qexp.onnx_file import BFLOAT16_OPSET, write_onnx
from qexp.types import Unsupported


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


def load_model(file: Path, threads: int) -> Forward:
    import openvino

    # Left to itself, OpenVINO computes fp32 networks in bfloat16 if the processor can. Told f32, it keeps to the types
    # of the graph.
    options: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }  # fmt: skip
    try:
        request = openvino.Core().compile_model(str(file), "CPU", options).create_infer_request()
    except RuntimeError as error:  # which names lines of OpenVINO's sources first
        what = next((line for line in str(error).splitlines() if line.startswith("[")), str(error))
        raise RuntimeError(f"OpenVINO cannot compile this network: {what[:160]}") from error

    def forward(x: np.ndarray) -> np.ndarray:
        return np.array(next(iter(request.infer([x], share_inputs=True).values())))

    return forward
