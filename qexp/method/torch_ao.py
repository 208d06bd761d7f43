"""The classic quantisation of torch.ao, written as TorchScript, for comparison with older work.

PyTorch has deprecated both. This file, qexp/engine/torch_ao.py and the `torchscript` keys of conf/method belong
together.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.ao.nn import quantized
from torch.ao.nn.quantized import dynamic
from torch.ao.quantization import get_default_qconfig_mapping, quantize_dynamic
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

from qexp.artifact import EngineSpec
from qexp.data.base import ImageData
from qexp.data.images import in_steps
from qexp.method.base import Compressed, Method
from qexp.method.graph import example_input, graph_of, layer_table, trace, with_formats
from qexp.method.layers import weight_named
from qexp.method.layers_csv import rounded_weight
from qexp.method.verification import verify
from qexp.types import Unsupported, UserError

# Beginnings (regular expressions) of warnings about deprecated parts of torch, and about scales that tracing turns into
# constants, which is intended.
KNOWN_WARNINGS = (
    "torch.ao.quantization is deprecated",
    "`torch.jit",
    ".*reduce_range",
    "torch.quantize_per_",
    "Converting a tensor",
)
DTYPES = {8: torch.qint8, 16: torch.float16}


class Classic(Method):
    """The base of methods that write TorchScript for one family of integer kernels."""

    format = "torchscript"

    def resolve(self, engine_spec: EngineSpec) -> EngineSpec:
        return replace(super().resolve(engine_spec), kernels=engine_spec.kernels)


class Traced(Classic):
    """Writes the fp32 network as TorchScript."""

    name = "none"
    supported_bits = (32,)

    def __init__(self) -> None:
        super().__init__(bits=32)

    def label(self, engine_spec: EngineSpec) -> str:
        return "fp32"

    def apply(self, network: nn.Module, data: ImageData, engine_spec: EngineSpec, folder: Path) -> Compressed:
        with classic(engine_spec.kernels):
            return save_torchscript(network, network, data, folder)


class ClassicDynamic(Classic):
    """Quantises linear layers only, while convolutions stay fp32.

    With 8 bits, weights are int8 and the scales of activations are found at each call. With 16, weights are fp16.

    Args:
        layers: `linear`. With `all`, `resolve` refuses, or engines would be compared that do different things.
        **common: What all methods take.
    """

    name = "dynamic"
    supported_bits = (8, 16)

    def __init__(self, layers: str, **common: Any):
        super().__init__(**common)
        self.layers = layers

    def label(self, engine_spec: EngineSpec) -> str:
        return f"{'dynamic fp16' if self.bits == 16 else super().label(engine_spec)} linear"

    def resolve(self, engine_spec: EngineSpec) -> EngineSpec:
        if self.layers != "linear":
            raise Unsupported("torch.ao quantises linear layers alone at each call; give method.layers=linear")
        return super().resolve(engine_spec)

    def apply(self, network: nn.Module, data: ImageData, engine_spec: EngineSpec, folder: Path) -> Compressed:
        with classic(engine_spec.kernels):
            converted = quantize_dynamic(copy.deepcopy(network), {nn.Linear}, DTYPES[int(self.bits)])
            return save_torchscript(converted, network, data, folder)


class ClassicStatic(Classic):
    """Quantises in FX graph mode, with the default configuration of the kernels.

    Convolution, batch norm and activation are always fused.
    """

    name = "static"
    calibrates = True

    def __init__(self, fuse: bool, calibration_batch: int, **common: Any):
        super().__init__(**common)
        self.fuse, self.calibration_batch = fuse, calibration_batch

    def resolve(self, engine_spec: EngineSpec) -> EngineSpec:
        if not self.fuse:
            raise Unsupported(
                "torch_ao always fuses convolution, batch norm and activation; method.fuse=false needs another engine"
            )
        return super().resolve(engine_spec)

    def apply(self, network: nn.Module, data: ImageData, engine_spec: EngineSpec, folder: Path) -> Compressed:
        with classic(engine_spec.kernels), torch.no_grad():
            try:
                prepared = prepare_fx(
                    copy.deepcopy(network), get_default_qconfig_mapping(engine_spec.kernels), (example_input(data),)
                )
            except Exception as error:
                raise UserError(
                    f"torch.fx cannot trace {type(network).__name__} for torch_ao: {str(error)[:400]}"
                ) from error
            # A copy, since the observers see what it is shown.
            verify(copy.deepcopy(prepared), network, data.calibration(), "The graph of torch.fx")
            for images in in_steps(data.calibration(), self.calibration_batch):
                prepared(images)
            return save_torchscript(convert_fx(prepared), network, data, folder)


@contextmanager
def classic(kernels: str) -> Iterator[None]:
    """A context in which torch uses these integer kernels, without its warnings that known parts are deprecated."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = kernels
    try:
        with warnings.catch_warnings():
            for message in KNOWN_WARNINGS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        torch.backends.quantized.engine = before


def save_torchscript(converted: nn.Module, network: nn.Module, data: ImageData, folder: Path) -> Compressed:
    """Trace a converted network, freeze it and write it to model.ts.

    Args:
        converted: The network to write. The formats of layers are read off its modules.
        network: The fp32 network that it was made from.
        data: The images that the network is for.
        folder: The folder to write to.
    """
    layers = layer_table(graph_of(trace(network, data)), network, data)
    with torch.no_grad():
        traced = torch.jit.freeze(torch.jit.trace(converted, example_input(data), check_trace=False).eval())
    traced.save(str(folder / "whole.ts"))
    _without_source(folder / "whole.ts", folder / "model.ts")
    (folder / "whole.ts").unlink()
    return Compressed("model.ts", with_formats(layers, _formats(converted)), statistics=_facts(converted, network))


def _without_source(whole: Path, target: Path) -> None:
    """Copy a TorchScript archive without paths and lines of the source it was traced from. The copy runs the same."""
    reader, writer = torch._C.PyTorchFileReader(str(whole)), torch._C.PyTorchFileWriter(str(target))
    own = ("version", "byteorder", ".data/serialization_id")  # the writer adds these itself
    for name in reader.get_all_records():
        if not name.endswith(".debug_pkl") and name not in own:
            content = reader.get_record(name)
            writer.write_record(name, content, len(content))
    writer.write_end_of_file()


def _formats(converted: nn.Module) -> dict[str, tuple[str, str]]:
    found = {}
    for name, module in converted.named_modules():
        if isinstance(module, dynamic.Linear):
            half = module._packed_params.dtype == torch.float16
            found[name] = ("float16", "float32") if half else ("int8", "uint8")
        elif isinstance(module, (quantized.Conv2d, quantized.Linear)):
            found[name] = ("int8", "uint8")
    return found


def _facts(converted: nn.Module, network: nn.Module) -> dict[str, dict[str, float]]:
    """Statistics of linear layers.

    The weights of convolutions cannot be compared with the network's, because batch norms are folded into them.
    """
    found = {}
    for name, module in converted.named_modules():
        if isinstance(module, (dynamic.Linear, quantized.Linear)):
            weight, rounded = weight_named(network, name).detach(), module.weight()
            if rounded.is_quantized:
                each = rounded.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams)
                scale = rounded.q_per_channel_scales() if each else torch.tensor(rounded.q_scale())
                zero_point = rounded.q_per_channel_zero_points() if each else torch.tensor(rounded.q_zero_point())
                found[name] = rounded_weight(weight, rounded.dequantize(), scale, zero_point)
            else:
                found[name] = rounded_weight(weight, rounded.float())
    return found
