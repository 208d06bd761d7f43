"""OpenVINO on the CPU: reads the ONNX file that ONNX Runtime reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from qexp.engine.base import Engine, Run
from qexp.onnx_file import BFLOAT16_OPSET, write_onnx
from qexp.types import Artifact, Unsupported, Wants


class OpenVino(Engine):
    name = "openvino"
    wants = Wants(half=("bfloat16",))
    file = "model.onnx"
    packages = ("openvino",)

    def check(self, artifact: Artifact) -> None:
        super().check(artifact)
        if artifact.method == "half":
            import openvino

            if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
                raise Unsupported("openvino computes in bfloat16 only on processors with instructions for it, and this one has none")

    def write(self, artifact: Artifact, file: Path, batch: int, threads: int) -> None:
        opset = BFLOAT16_OPSET if artifact.method == "half" else None
        write_onnx(artifact.folder / artifact.graph, artifact.data.input_shape, file, opset)

    def import_libraries(self) -> None:
        import openvino  # noqa: F401

    def load(self, file: Path, threads: int) -> Run:
        import openvino

        core = openvino.Core()
        model = core.read_model(str(file))
        half = any(op.get_type_name() == "Constant" and op.get_element_type() == openvino.Type.bf16 for op in model.get_ops())
        # Left to itself it computes fp32 networks in bfloat16 where the processor can.
        options: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if half else "f32",
        }  # fmt: skip
        request = core.compile_model(model, "CPU", options).create_infer_request()

        def run(x: np.ndarray) -> np.ndarray:
            return np.array(next(iter(request.infer([x], share_inputs=True).values())))

        return run
