"""The least that a new engine needs: ONNX's own evaluator, which computes with NumPy, operator by operator."""

from __future__ import annotations

from pathlib import Path

from qexp.artifact import Artifact, EngineSpec
from qexp.engine.base import Engine, Forward
from qexp.onnx_file import write_onnx


class OnnxReference(Engine):
    name = "onnx_reference"
    spec = EngineSpec()
    file = "reference.onnx"
    packages = ("onnx",)

    def write(self, artifact: Artifact, graph: Path, file: Path, batch: int, threads: int) -> None:
        write_onnx(graph, artifact.data.input_shape, file)

    def load(self, file: Path, threads: int) -> Forward:
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(str(file))
        return lambda x: evaluator.run(None, {"x": x})[0]
