"""No compression: the fp32 network itself, which all others are compared with."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from qexp.artifact import EngineSpec
from qexp.data.base import ImageData
from qexp.method.base import Compressed, Method
from qexp.method.graph import save_fp32


class NoCompression(Method):
    """Writes the graph of the network as it is."""

    name = "none"
    supported_bits = (32,)

    def __init__(self, torchscript: Method | None):
        super().__init__(bits=32)  # whatever bits a sweep goes through, so that it has only one such row
        self.torchscript = torchscript

    def label(self, engine_spec: EngineSpec) -> str:
        return "fp32"

    def apply(self, network: nn.Module, data: ImageData, engine_spec: EngineSpec, folder: Path) -> Compressed:
        return Compressed("model.pt2", save_fp32(network, data, folder / "model.pt2"))
