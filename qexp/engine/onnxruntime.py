"""ONNX Runtime, which runs Q/DQ graphs with integer kernels and fp32 graphs with fused kernels of its own."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from qexp.artifact import Artifact, EngineSpec
from qexp.coded_file import decoded
from qexp.engine.base import Engine, Forward
from qexp.engine.profiles import CALLS, CONVERSION, FLOAT, INTEGER, OTHER, WARM_CALLS, profile
from qexp.onnx_file import write_onnx
from qexp.types import Unsupported, UserError, nearest

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
WANTS = {
    "cpu": EngineSpec(("pt2", "onnx")),
    "cuda": EngineSpec(half=("float16",)),
    "tensorrt": EngineSpec(activation="int8_symmetric", half=("float16",)),
}
CONVERSIONS = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast", "ReorderInput", "ReorderOutput",
}  # fmt: skip


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

    def operators(self, file: Path, threads: int, forward: Forward, x: np.ndarray) -> dict[str, Any]:
        with TemporaryDirectory() as folder:
            with decoded(file) as plain:
                session = make_session(plain, threads, PROVIDERS[self.provider], str(Path(folder) / "profile"))
            for _ in range(WARM_CALLS + CALLS):
                session.run(None, {session.get_inputs()[0].name: x})
            events = json.loads(Path(session.end_profiling()).read_text())
        calls = sorted(event["ts"] for event in events if event["name"] == "model_run")[WARM_CALLS:]
        kernels = [event for event in events if event.get("cat") == "Node" and "input_type_shape" in event["args"]]
        return profile(
            ((event["args"]["op_name"], computes(event["args"]), event["dur"]) for event in kernels
             if event["ts"] >= calls[0]), len(calls),
        )  # fmt: skip


def computes(told: dict[str, Any]) -> str:
    """What an operator computes, by what ONNX Runtime's profiler tells of it."""
    if told["op_name"] in CONVERSIONS:
        return CONVERSION
    types = {name for tensor in told["input_type_shape"] for name in tensor}
    if types & {"int8", "uint8"}:
        return INTEGER
    return FLOAT if types & {"float", "float16", "bfloat16", "double"} else OTHER


def load_session(file: Path, threads: int, provider: str) -> Forward:
    session = make_session(file, threads, provider)
    name = session.get_inputs()[0].name

    def forward(x: np.ndarray) -> np.ndarray:
        return session.run(None, {name: x})[0]

    return forward


def make_session(file: Path, threads: int, provider: str, profile_to: str = "") -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    if profile_to:
        options.enable_profiling, options.profile_file_prefix = True, profile_to
    return onnxruntime.InferenceSession(str(file), options, providers=[provider])
