"""Dynamic quantisation by ONNX Runtime: convolutions and linear layers, activation scales found at each call."""

from __future__ import annotations

import logging
from pathlib import Path

import onnx
from torch import nn

from qexp.data.base import ImageData
from qexp.method.base import Compressed, Method, export, layer_table, save_graph, with_formats
from qexp.onnx_file import write_onnx
from qexp.types import Wants

INTEGER_OPERATORS = ("ConvInteger", "MatMulInteger")


class OnnxDynamic(Method):
    """Weights uint8, per tensor: ONNX Runtime's integer convolution takes no others. Activations uint8."""

    name = "dynamic"
    format = "onnx"

    def apply(self, network: nn.Module, data: ImageData, wants: Wants, folder: Path) -> Compressed:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        save_graph(export(network, data), folder / "whole.pt2")
        write_onnx(folder / "whole.pt2", data.spec.input_shape, folder / "whole.onnx")
        whole = onnx.load(folder / "whole.onnx")
        del whole.graph.value_info[:]  # onnxruntime transposes weights without correcting the shapes noted here
        root = logging.getLogger()  # onnxruntime logs its advice to run a preprocessing that torch.onnx has done already
        before, root.disabled = root.disabled, True
        try:
            quantize_dynamic(whole, folder / "model.onnx", weight_type=QuantType.QUInt8)
        finally:
            root.disabled = before
        for intermediate in ("whole.pt2", "whole.onnx"):
            (folder / intermediate).unlink()
        layers = layer_table(network, data)
        integer = _quantised_weights(folder / "model.onnx")
        formats = {layer.name: ("uint8", "uint8") for layer in layers if f"{layer.name}.weight" in integer}
        return Compressed("model.onnx", with_formats(layers, formats))


def _quantised_weights(file: Path) -> set[str]:
    """Names of the weights that the graph's integer operators take."""
    graph = onnx.load(file, load_external_data=False).graph
    return {node.input[1].removesuffix("_quantized") for node in graph.node if node.op_type in INTEGER_OPERATORS}
