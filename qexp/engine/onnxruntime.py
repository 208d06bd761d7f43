"""ONNX Runtime, which runs Q/DQ graphs with integer kernels and fp32 graphs with fused kernels of its own."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from qexp.artifact import Artifact, EngineSpec
from qexp.engine.base import Engine, Forward
from qexp.onnx_file import write_onnx
from qexp.types import Unsupported, UserError, nearest

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
WANTS = {
    "cpu": EngineSpec(("pt2", "onnx")),
    "cuda": EngineSpec(half=("float16",)),
    "tensorrt": EngineSpec(activation="int8_symmetric", half=("float16",)),
}


class OnnxRuntime(Engine):
    """Runs ONNX files with one of ONNX Runtime's providers.

    Raises:
        UserError: There is no provider of this name.
    """

    file = "model.onnx"
    packages = ("onnxruntime",)
    carries_code = False
    thread_safe = True

    def __init__(self, provider: str):
        if provider not in PROVIDERS:
            raise UserError(f"There is no provider {provider!r}. {nearest(provider, PROVIDERS)}")
        self.provider = provider
        self.spec = WANTS[provider]
        self.name = {"cpu": "onnxruntime", "cuda": "onnxruntime_cuda", "tensorrt": "tensorrt"}[provider]

    def check_machine(self) -> None:
        super().check_machine()
        import onnxruntime

        if PROVIDERS[self.provider] not in onnxruntime.get_available_providers():
            raise Unsupported(
                f"the installed onnxruntime has no provider for {self.provider}: it needs an NVIDIA GPU and "
                "onnxruntime-gpu"
            )

    def write(self, artifact: Artifact, graph: Path, file: Path, batch: int, threads: int) -> None:
        write_onnx(graph, artifact.data.input_shape, file)

    def load(self, file: Path, threads: int) -> Forward:
        return self.standalone()(file, threads)

    def standalone(self) -> partial[Forward]:
        return partial(load_session, provider=PROVIDERS[self.provider])


def load_session(file: Path, threads: int, provider: str) -> Forward:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=[provider])
    name = session.get_inputs()[0].name

    def forward(x: np.ndarray) -> np.ndarray:
        return session.run(None, {name: x})[0]

    return forward
