"""ONNX Runtime on the CPU: Q/DQ graphs become integer kernels, fp32 graphs its own fused ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qexp.engine.base import Engine, Run
from qexp.types import Artifact, UserError, Wants


class OnnxRuntime(Engine):
    name = "onnxruntime"
    wants = Wants()
    file = "model.onnx"
    packages = ("onnxruntime",)

    def write(self, artifact: Artifact, file: Path) -> None:
        import torch
        from torch.ao.quantization.fx import _decomposed  # noqa: F401  (registers the quantize/dequantize operators)

        program = torch.export.load(artifact.folder / artifact.graph)
        example = torch.zeros(2, *artifact.data.input_shape)
        try:
            exported = torch.onnx.export(
                program, (example,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), input_names=["x"],
                output_names=["logits"], verbose=False,
            )  # fmt: skip
        except Exception as error:
            raise UserError(f"torch.onnx cannot export {artifact.model}: {str(error)[:600]}") from error
        assert exported is not None
        graph = exported.model.graph
        for node in graph.all_nodes():  # source lines and module paths, larger than a small network's weights
            node.metadata_props.clear()
            node.doc_string = None
        exported.save(file)

    def import_libraries(self) -> None:
        import onnxruntime  # noqa: F401

    def load(self, file: Path, threads: int) -> Run:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name

        def run(x: np.ndarray) -> np.ndarray:
            return session.run(None, {name: x})[0]

        return run
