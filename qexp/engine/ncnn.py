"""ncnn on the processor, which runs networks on phones and boards."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from qexp.artifact import Artifact, EngineSpec
from qexp.engine.base import Engine, Forward


class Ncnn(Engine):
    """Runs ncnn's text of layers and its numbers, which lie in one ZIP.

    qexp writes both itself. Layers with integer weights round what they read to the graph's scales and give floating
    point, or integers where nothing but such layers reads them; all else computes in floating point, as ncnn has
    no kernels for it. ncnn knows integers without a zero point only, leaves out -128, and keeps one scale for all
    channels of a group, so that convolutions with several channels in a group stay in floating point.
    It takes one image at a time, so that a call with several images is a loop over them, as in programs for phones.
    """

    name = "ncnn"
    spec = EngineSpec(placement="ncnn", activation="int8_symmetric")
    file = "model.ncnn.zip"
    packages = ("ncnn",)
    carries_code = False

    def write(self, artifact: Artifact, graph: Path, file: Path, batch: int, threads: int) -> None:
        from qexp.engine.exported import read_graph
        from qexp.engine.ncnn_operators import write_ncnn

        write_ncnn(read_graph(graph, (1, *artifact.data.input_shape), self.name), file)

    def load(self, file: Path, threads: int) -> Forward:
        return self.standalone()(file, threads)

    def standalone(self) -> partial[Forward]:
        return partial(load_network)


def load_network(file: Path, threads: int) -> Forward:
    import zipfile

    import ncnn

    network = ncnn.Net()
    network.opt.num_threads = threads
    with zipfile.ZipFile(file) as archive:
        text, numbers = (archive.read(f"model.ncnn.{part}") for part in ("param", "bin"))
    if network.load_param_mem(text.decode()):
        raise RuntimeError(f"ncnn cannot read {file.name}")
    network.load_model_mem(numbers)

    def logits(image: np.ndarray) -> np.ndarray:
        extractor = network.create_extractor()
        extractor.input("x", ncnn.Mat(image))
        failed, made = extractor.extract("logits")
        if failed:
            raise RuntimeError(f"ncnn cannot compute {file.name}")
        return np.array(made)

    def forward(x: np.ndarray) -> np.ndarray:
        return np.stack([logits(np.ascontiguousarray(image)) for image in x])

    return forward
