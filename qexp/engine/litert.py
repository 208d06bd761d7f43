"""LiteRT, which runs `.tflite` files on phones and boards. Here its own runtime for processors runs them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from qexp.artifact import Artifact, EngineSpec
from qexp.engine.base import Engine, Forward, in_batches_of


class LiteRt(Engine):
    """Runs a file that is made for one batch size, with XNNPACK's kernels where it has them.

    qexp writes the file itself, from the quantised graph: weights, scales and zero points are the graph's own, and only
    biases are rounded, to the scale of the products that they are added to. The file takes x[B,C,H,W] and transposes it
    once, after rounding it. LiteRT-Torch 0.10 would convert quantised graphs as well, but needs torch below 2.15, and
    JAX; onnx2tf 2.6 needs Python 3.12 and other versions of NumPy, ONNX, ONNX Runtime and LiteRT than qexp.
    """

    name = "litert"
    spec = EngineSpec(placement="xnnpack", activation="int8")
    file = "model-batch{batch}.tflite"
    packages = ("ai_edge_litert",)
    modules = ("ai_edge_litert.interpreter",)
    carries_code = False

    def write(self, artifact: Artifact, graph: Path, file: Path, batch: int, threads: int) -> None:
        from qexp.engine.exported import read_graph
        from qexp.engine.tflite_operators import write_tflite

        write_tflite(read_graph(graph, (batch, *artifact.data.input_shape), self.name), file)

    def load(self, file: Path, threads: int) -> Forward:
        return self.standalone()(file, threads)

    def standalone(self) -> partial[Forward]:
        return partial(load_interpreter)


def load_interpreter(file: Path, threads: int) -> Forward:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(file), num_threads=threads)
    interpreter.allocate_tensors()
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()

    def forward(x: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(given["index"], x)
        interpreter.invoke()
        return interpreter.get_tensor(made["index"])

    return in_batches_of(int(given["shape"][0]), forward)
