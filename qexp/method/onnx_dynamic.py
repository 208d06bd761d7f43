"""Dynamic quantisation by ONNX Runtime: convolutions and linear layers, activation scales found at each call."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
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
        weights = {constant.name: onnx.numpy_helper.to_array(constant) for constant in whole.graph.initializer}
        del whole.graph.value_info[:]  # onnxruntime transposes weights without correcting the shapes noted here
        root = logging.getLogger()  # onnxruntime logs its advice to run a preprocessing that torch.onnx has done already
        before, root.disabled = root.disabled, True
        try:
            quantize_dynamic(whole, folder / "model.onnx", weight_type=QuantType.QUInt8)
        finally:
            root.disabled = before
        for intermediate in ("whole.pt2", "whole.onnx"):
            (folder / intermediate).unlink()
        integer = {name: weights[name] for name in weights.keys() & _quantised_weights(folder / "model.onnx")}
        layers = layer_table(network, data)
        formats = {layer.name: ("uint8", "uint8") for layer in layers if _holds(integer, network, layer.name)}
        return Compressed("model.onnx", with_formats(layers, formats))


def _quantised_weights(file: Path) -> set[str]:
    """Names of the weights that the graph's integer operators take."""
    graph = onnx.load(file, load_external_data=False).graph
    return {node.input[1].removesuffix("_quantized") for node in graph.node if node.op_type in INTEGER_OPERATORS}


def _holds(weights: dict[str, np.ndarray], network: nn.Module, layer: str) -> bool:
    """Whether the layer's weight is among a graph's `weights`: by its name, for a batch norm may be folded into it, or by its
    values, for torch.onnx renames weights that it transposes or that layers share."""
    own = network.get_parameter(f"{layer}.weight").detach().numpy()
    return f"{layer}.weight" in weights or any(np.array_equal(value, w) for value in weights.values() for w in (own, own.T))
