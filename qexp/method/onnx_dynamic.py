"""Dynamic quantisation of convolutions and linear layers by ONNX Runtime, with activation scales found at each call."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from qexp.artifact import EngineSpec
from qexp.data.base import ImageData
from qexp.method.base import Compressed, Method
from qexp.method.graph import save_fp32, with_formats
from qexp.method.layers import weight_named
from qexp.method.layers_csv import rounded_weight
from qexp.method.quantize.numerics import dequantize
from qexp.onnx_file import write_onnx
from qexp.types import UserError, nearest

INTEGER_OPERATORS = ("ConvInteger", "MatMulInteger")
OPERATORS = {"all": None, "linear": ["MatMul"]}  # that ONNX Runtime is told to quantise; None: all that it can


class OnnxDynamic(Method):
    """Quantises weights and activations to uint8.

    Weights have one scale per tensor, since ONNX Runtime's integer convolution takes no others.

    Args:
        layers: `all`, or `linear` for linear layers alone.
        torchscript: The counterpart of torch.ao.
        **common: What all methods take.

    Raises:
        UserError: `layers` is something else.
    """

    name = "dynamic"
    format = "onnx"

    def __init__(self, layers: str, torchscript: Method | None, **common: Any):
        super().__init__(**common)
        if layers not in OPERATORS:
            raise UserError(f"method.layers={layers} is unknown. {nearest(str(layers), OPERATORS)}")
        self.layers, self.torchscript = layers, torchscript

    def label(self, engine_spec: EngineSpec) -> str:
        return super().label(engine_spec) + " linear" * (self.layers == "linear")

    def apply(self, network: nn.Module, data: ImageData, engine_spec: EngineSpec, folder: Path) -> Compressed:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        layers = save_fp32(network, data, folder / "whole.pt2")
        write_onnx(folder / "whole.pt2", data.spec.input_shape, folder / "whole.onnx")
        whole = onnx.load(folder / "whole.onnx")
        weights = {constant.name: onnx.numpy_helper.to_array(constant) for constant in whole.graph.initializer}
        del whole.graph.value_info[:]  # onnxruntime transposes weights, but does not correct the shapes noted here
        # onnxruntime logs its advice to run a preprocessing that torch.onnx has already done.
        root = logging.getLogger()
        before, root.disabled = root.disabled, True
        try:
            chosen = OPERATORS[self.layers]
            quantize_dynamic(whole, folder / "model.onnx", chosen, weight_type=QuantType.QUInt8)
        finally:
            root.disabled = before
        for intermediate in ("whole.pt2", "whole.onnx"):
            (folder / intermediate).unlink()
        integer = {name: weights[name] for name in weights.keys() & _quantised_weights(folder / "model.onnx")}
        formats = {layer.name: ("uint8", "uint8") for layer in layers if _holds(integer, network, layer.name)}
        return Compressed(
            "model.onnx", with_formats(layers, formats), statistics=_facts(folder / "model.onnx", weights, formats)
        )


def _facts(file: Path, weights: dict[str, np.ndarray], layers: Iterable[str]) -> dict[str, dict[str, float]]:
    """Statistics of those layers whose weight has kept its name.

    torch.onnx renames a weight that several layers share, or that it transposes.
    """
    stored = {
        constant.name: torch.tensor(onnx.numpy_helper.to_array(constant))
        for constant in onnx.load(file).graph.initializer
    }
    statistics = {}
    for layer in layers:
        name = f"{layer}.weight"
        if name in weights and f"{name}_quantized" in stored:
            integers, scale, zero_point = (stored[f"{name}_{part}"] for part in ("quantized", "scale", "zero_point"))
            rounded, weight = dequantize(integers.float(), scale, zero_point.float()), torch.tensor(weights[name])
            # The matrix may have been transposed. The right way round is the one with the smaller error.
            either = [turned for turned in (rounded, rounded.mT) if turned.shape == weight.shape]
            statistics[layer] = max(
                (rounded_weight(weight, turned, scale, zero_point) for turned in either),
                key=itemgetter("weight_sqnr_db"),
            )
    return statistics


def _quantised_weights(file: Path) -> set[str]:
    """The names of the weights that the graph's integer operators take."""
    graph = onnx.load(file, load_external_data=False).graph
    return {node.input[1].removesuffix("_quantized") for node in graph.node if node.op_type in INTEGER_OPERATORS}


def _holds(weights: dict[str, np.ndarray], network: nn.Module, layer: str) -> bool:
    """Whether the weight of a layer is among the weights of a graph.

    It is looked for by its name, since a batch norm may have been folded into it, and by its values, since torch.onnx
    renames weights that it transposes or that layers share.
    """
    own = weight_named(network, layer).detach().numpy()
    return bool({layer, f"{layer}.weight"} & weights.keys()) or any(
        np.array_equal(value, w) for value in weights.values() for w in (own, own.T)
    )
