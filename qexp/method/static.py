"""Static post-training quantisation: ranges from calibration images, weights per output channel, one Q/DQ graph."""

from __future__ import annotations

import copy
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import HistogramObserver, MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationSpec, Quantizer

from qexp.data.base import ImageData
from qexp.method.base import Compressed, Method, export, layer_table, save_graph, with_formats
from qexp.method.quantizer import WEIGHTED, placement
from qexp.types import Unsupported, UserError, Wants, nearest

OBSERVERS = {"histogram": HistogramObserver, "minmax": MinMaxObserver}
# (dtype, quant_min, quant_max, scheme) of activations; the range is all of the type's, at which ONNX saturates
ACTIVATIONS = {
    "uint8": (torch.uint8, 0, 255, torch.per_tensor_affine),
    "int8": (torch.int8, -128, 127, torch.per_tensor_affine),
    "int8_symmetric": (torch.int8, -128, 127, torch.per_tensor_symmetric),
}


class Static(Method):
    """Activations in 8 bits per tensor, as the engine wants them; weights int8, symmetric, per output channel.

    observer: how activation ranges are found, `histogram` (the range of least squared error) or `minmax`; fuse=False keeps
    convolution, batch norm and activation quantised apart; reduce_range: weights in -63..63, so that pairs of uint8 x int8
    products fit the 16 bits that x86 processors without VNNI add them in; `auto` where this processor is one.
    """

    name = "static"

    def __init__(
        self, observer: str = "histogram", fuse: bool = True, reduce_range: bool | str = "auto", calibration_batch: int = 64, **common: Any
    ):
        super().__init__(**common)
        if observer not in OBSERVERS:
            raise UserError(f"There is no observer {observer!r}. {nearest(observer, OBSERVERS)}")
        self.observer, self.fuse, self.calibration_batch = observer, fuse, calibration_batch
        self.reduce_range = products_saturate() if reduce_range == "auto" else bool(reduce_range)

    def label(self, wants: Wants) -> str:
        reduced = self.reduce_range and wants.activation == "uint8"
        return super().label(wants) + (" unfused" if not self.fuse else "") + (" 7-bit weights" if reduced else "")

    def settle(self, wants: Wants) -> Wants:
        if wants.placement != "fused" and not self.fuse:
            raise Unsupported("method.fuse=false needs an engine that runs the placement `fused`, such as onnxruntime")
        return replace(super().settle(wants), placement=wants.placement, activation=wants.activation)

    def apply(self, network: nn.Module, data: ImageData, wants: Wants, folder: Path) -> Compressed:
        source = network if self.fuse else with_separate_norms(network)
        prepared = prepare_pt2e(export(source, data).module(), self.quantizer(wants))
        calibrate(prepared, data.calibration(), self.calibration_batch)
        converted = convert_pt2e(prepared)
        layers = with_formats(layer_table(network, data), layer_formats(converted))
        drop_unused(converted)
        save_graph(export(converted, data), folder / "model.pt2")
        return Compressed("model.pt2", layers)

    def quantizer(self, wants: Wants) -> Quantizer:
        dtype, low, high, scheme = ACTIVATIONS[wants.activation]
        observer = OBSERVERS[self.observer].with_args()
        activation = QuantizationSpec(dtype=dtype, observer_or_fake_quant_ctr=observer, quant_min=low, quant_max=high, qscheme=scheme)
        limit = 63 if self.reduce_range and wants.activation == "uint8" else 127
        weight = QuantizationSpec(
            dtype=torch.int8, observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(), quant_min=-limit, quant_max=limit,
            qscheme=torch.per_channel_symmetric, ch_axis=0,
        )  # fmt: skip
        return placement(wants.placement, activation, weight, fuse_activation=self.fuse)


def products_saturate() -> bool:
    """Whether integer kernels add pairs of uint8 x int8 products in 16 bits here, where they may not fit."""
    return platform.machine() in ("x86_64", "AMD64") and not torch.cpu._is_vnni_supported()


def calibrate(prepared: GraphModule, images: Tensor, batch: int) -> None:
    """Show x[N,C,H,W] to the observers. Errors: UserError naming each tensor whose observer saw nothing."""
    with torch.no_grad():
        for chunk in images.split(batch):
            prepared(chunk)
    observers = {n: m for n, m in prepared.named_modules() if isinstance(m, (HistogramObserver, MinMaxObserver, PerChannelMinMaxObserver))}
    blind = {name for name, observer in observers.items() if observer.min_val.numel() == 0 or not observer.min_val.isfinite().all()}
    if blind:
        places = [str(n.args[0]) for n in prepared.graph.nodes if n.op == "call_module" and n.target in blind]
        raise UserError(f"Not calibrated, their scales would mean nothing: {', '.join(places)}. Raise data.calibration_images.")


def layer_formats(converted: GraphModule) -> dict[str, tuple[str, str]]:
    """(weight, activation) formats of each convolution and linear layer, read off the graph by the layer's module path."""
    formats = {}
    for node in converted.graph.nodes:
        if node.op == "call_function" and node.target in WEIGHTED:
            path = list(node.meta["nn_module_stack"].values())[-1][0]
            formats[path] = (_format(node.args[1]), _format(node.args[0]))
    return formats


def _format(source: Node) -> str:
    """`int8`, `uint8`, ... where the tensor comes out of a dequantize node, else `float32`."""
    if "dequantize_per" not in str(source.target):
        return "float32"
    # Both dequantize operators end in (quant_min, quant_max, dtype).
    return str(next(a for a in reversed(source.args) if isinstance(a, torch.dtype))).removeprefix("torch.")


def drop_unused(converted: GraphModule) -> None:
    """Delete the fp32 weights that conversion leaves beside the quantised ones; they would be written to the file."""
    used = {node.target for node in converted.graph.nodes if node.op == "get_attr"}
    for name, _ in [*converted.named_parameters(), *converted.named_buffers()]:
        if name not in used:
            path, _, leaf = name.rpartition(".")
            delattr(converted.get_submodule(path), leaf)


class Affine(nn.Module):
    """Batch norm at inference as scale[C,1,1] * x[B,C,H,W] + shift[C,1,1]: nothing folds it into a convolution."""

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__()
        assert norm.running_var is not None and norm.running_mean is not None
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        self.scale = nn.Parameter(scale.detach()[:, None, None])
        self.shift = nn.Parameter((norm.bias - norm.running_mean * scale).detach()[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale)


def with_separate_norms(network: nn.Module) -> nn.Module:
    """A copy of the network whose batch norms stay operators of their own."""
    copied = copy.deepcopy(network)
    for module in list(copied.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, Affine(child))
    return copied
