"""The base of all methods that quantise: they make specs of every tensor, calibrate, and write one Q/DQ graph.

The steps are: fold batch norms (and equalise channels), put a quantizer at every tensor, find its range on calibration
images, tune (this is what a method adds), and convert. With 8 bits throughout, engines run the graph with integer
kernels. Other bit-widths are exact simulations in torch, with weights packed in the file.
"""

from __future__ import annotations

import copy
import platform
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.ao.quantization.fx.utils import assert_and_get_unique_device
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationSpec, Quantizer
from torchao.utils import _assert_and_get_unique_device

from qexp.artifact import EngineSpec
from qexp.data.base import ImageData
from qexp.data.images import Images, in_steps
from qexp.method.base import Compressed, Method
from qexp.method.bits import FLOAT, BitWidths, plan_bits
from qexp.method.graph import export, folded_graph, layer_table, node_macs, save_graph, with_formats
from qexp.method.quantize.converted import drop_unused, float_islands, integer_products, layer_formats
from qexp.method.quantize.corrections import correct_bias, equalise
from qexp.method.quantize.decompositions import KERNELS, Kernels, absorb_factors, decompose
from qexp.method.quantize.fake_quantize import (
    SCHEMES,
    FakeQuantize,
    PackedFakeQuantize,
    WeightFakeQuantize,
    fix_all,
    in_floating_point,
)
from qexp.method.quantize.layer_statistics import layer_statistics
from qexp.method.quantize.numerics import Grid
from qexp.method.quantize.observers import OBSERVERS
from qexp.method.quantize.placement import (
    FusedPlacement,
    LayerPlacement,
    LayerSpec,
    weighted_layers,
    x86_inductor_placement,
)
from qexp.method.verification import verify
from qexp.types import Unsupported, UserError, nearest

# In which torch 2.15 and torchao 0.18 keep every network that they have seen, with all its weights.
KEEPING_NETWORKS: tuple[Any, ...] = (assert_and_get_unique_device, _assert_and_get_unique_device)


class Quantization(Method):
    """The base of methods that give a network fewer bits.

    Equalisation and bias correction are explained in corrections.py. A reduced range keeps weights in -63..63, so that
    pairs of uint8 x int8 products fit the 16 bits in which x86 processors without VNNI add them.

    Raises:
        UserError: An option is unknown or out of range.
    """

    calibrates = True

    def __init__(
        self, observer: str, weight_observer: str, percentile: float, symmetric: bool, weight_symmetric: bool,
        per_channel: bool, group_size: int | None, power_of_two: bool, first_last_bits: int | None, add_bits: int,
        layer_bits: Mapping[str, int | str] | None, attention: str, fuse: bool, quantize_before_activation: bool,
        equalisation: bool, bias_correction: bool, reduce_range: bool | str, calibration_batch: int, **common: Any,
    ):  # fmt: skip
        super().__init__(**common)
        for name in (observer, weight_observer):
            if name not in OBSERVERS:
                raise UserError(f"There is no observer {name!r}. {nearest(name, OBSERVERS)}")
        if not 50 < percentile <= 100:
            raise UserError(f"method.percentile={percentile} is out of range; give percent above 50, such as 99.9.")
        _check_widths(first_last_bits=first_last_bits or FLOAT, add_bits=add_bits)
        for pattern, bits in (layer_bits or {}).items():
            _check_widths(**{f"layer_bits.{pattern}": bits})
        if group_size is not None and group_size < 1:
            raise UserError(
                f"method.group_size={group_size} is out of range; give at least 1, or null for one scale per channel."
            )
        if attention not in ("integer", "float"):
            raise UserError(f"method.attention={attention} does not exist; give integer or float.")
        self.attention = attention
        self.observer, self.weight_observer, self.percentile = observer, weight_observer, percentile
        self.symmetric, self.weight_symmetric = symmetric, weight_symmetric
        self.per_channel, self.group_size = per_channel, group_size
        self.power_of_two = power_of_two
        self.first_last_bits, self.add_bits, self.layer_bits = first_last_bits, add_bits, dict(layer_bits or {})
        self.fuse, self.quantize_before_activation = fuse, quantize_before_activation
        self.calibration_batch = calibration_batch
        self.equalisation, self.bias_correction = equalisation, bias_correction
        self.reduce_range = products_saturate() if reduce_range == "auto" else bool(reduce_range)

    @property
    def widths(self) -> BitWidths:
        return BitWidths.parse(self.bits)

    @property
    def for_engines(self) -> bool:
        """Whether engines have kernels for the result: 8 bits or floating point, with scales that kernels know."""
        layers = map(BitWidths.parse, self.layer_bits.values())
        known = all(bits.has_kernels or bits.is_float for bits in layers)
        plain = known and self.group_size is None and self.weight_symmetric
        return self.widths.has_kernels and self.add_bits == 8 and plain

    @property
    def leaves_float(self) -> bool:
        """Whether some layers stay in floating point, or may do so."""
        return any(BitWidths.parse(bits).is_float for bits in self.layer_bits.values())

    def label(self, engine_spec: EngineSpec) -> str:
        reduced = self.reduce_range and self.for_engines and engine_spec.activation == "uint8"
        return (
            f"{self.name} {self.widths}" + (" unfused" if not self.fuse else "") + (" 7-bit weights" if reduced else "")
        )

    def resolve(self, engine_spec: EngineSpec) -> EngineSpec:
        if not self.widths.can_be_integers:
            raise Unsupported(
                f"{self.name} works at 2 to 8 bits, of weights and activations or one of them, not at {self.bits}"
            )
        resolved = replace(
            EngineSpec(), formats=(self.format,), activation="int8_symmetric" if self.symmetric else "uint8"
        )
        if not self.for_engines:
            return resolved
        kernels = KERNELS.get(engine_spec.placement)
        for option, asked, possible in (
            ("fuse=false", not self.fuse, kernels and kernels.between),
            ("quantize_before_activation=true", self.quantize_before_activation, kernels and kernels.between),
            ("layer_bits with layers in floating point", self.leaves_float, kernels),
        ):
            if asked and not possible:
                raise Unsupported(
                    f"method.{option} needs an engine with integer kernels of its own, such as onnxruntime"
                )
        return replace(
            resolved,
            placement=engine_spec.placement,
            activation=resolved.activation if self.symmetric else engine_spec.activation,
        )

    def apply(self, network: nn.Module, data: ImageData, engine_spec: EngineSpec, folder: Path) -> Compressed:
        prepared = self.calibrated(network, data, engine_spec)
        exact = copy.deepcopy(prepared)
        self.tune(prepared, data)
        return self.finish(prepared, exact, network, data, folder)

    def calibrated(self, network: nn.Module, data: ImageData, engine_spec: EngineSpec) -> GraphModule:
        """The network with batch norms folded and a quantizer at every tensor, with scales found by calibration."""
        prepared, images = self.prepared(network, data, engine_spec), data.calibration()
        self.calibrate(prepared, images)
        if self.bias_correction:
            correct_bias(prepared, images)
        return prepared

    def calibrate(self, prepared: GraphModule, images: Images) -> None:
        """Find the scales of all quantizers on images x[N,C,H,W]."""
        observe(prepared, images, self.calibration_batch)
        fix_all(prepared)

    def prepared(self, network: nn.Module, data: ImageData, engine_spec: EngineSpec) -> GraphModule:
        """The network with batch norms folded and a quantizer at every tensor, not calibrated yet."""
        return self.with_quantizers(self.for_kernels(network, data, engine_spec), engine_spec)

    def with_quantizers(self, graph: GraphModule, engine_spec: EngineSpec) -> GraphModule:
        """Put a quantizer at every tensor of an fp32 graph, which is used up."""
        return prepare_pt2e(graph, self.placement(graph, engine_spec))

    def for_kernels(self, network: nn.Module, data: ImageData, engine_spec: EngineSpec) -> GraphModule:
        """The fp32 graph that quantizers are put into, in terms of operators that engines have integer kernels for."""
        graph, kernels = self.folded(network, data), self.kernels(engine_spec)
        if kernels and decompose(graph, kernels):
            verify(graph, network, data.calibration(), "The graph for integer kernels")
        return graph

    def kernels(self, engine_spec: EngineSpec) -> Kernels | None:
        """The integer kernels that a placement of ours counts on, or None for a placement that is not ours."""
        known = KERNELS.get(engine_spec.placement)
        return replace(known, products=known.products and self.attention == "integer") if known else None

    def folded(self, network: nn.Module, data: ImageData) -> GraphModule:
        """The fp32 graph without batch norms, equalised if that is asked for."""
        folded = folded_graph(network, data, self.fuse)
        if self.equalisation:
            equalise(folded)
        return folded

    def tune(self, prepared: GraphModule, data: ImageData) -> None:
        """Do what the method adds between calibration and conversion. By default, that is nothing."""

    def finish(
        self, prepared: GraphModule, exact: GraphModule, network: nn.Module, data: ImageData, folder: Path
    ) -> Compressed:
        """Convert the tuned graph and write it. `exact` is the graph before tuning, to tell what was changed."""
        found = layer_statistics(prepared, exact, data.calibration())
        converted = convert_pt2e(prepared)
        for cache in KEEPING_NETWORKS:
            cache.cache_clear()
        absorb_factors(converted)
        islands = float_islands(converted)
        with in_floating_point(exact):
            layers = with_formats(layer_table(exact, network, data), layer_formats(converted))
            products = node_macs(exact, data, integer_products(converted, exact))
        drop_unused(converted)
        save_graph(export(converted, data), folder / "model.pt2")
        return Compressed(
            "model.pt2", layers, simulated=not self.for_engines, files=(found.save(folder),),
            statistics=found.statistics, islands=islands, product_macs=sum(products.values()),
        )  # fmt: skip

    def bits_of_layers(self, graph: GraphModule) -> dict[str, BitWidths]:
        return plan_bits(weighted_layers(graph), self.widths, self.first_last_bits, self.layer_bits)

    def placement(self, graph: GraphModule, engine_spec: EngineSpec) -> Quantizer:
        layers = {name: self.spec(bits, engine_spec) for name, bits in self.bits_of_layers(graph).items()}
        kernels = self.kernels(engine_spec)
        if kernels is None:
            return x86_inductor_placement(next(iter(layers.values())))
        if not kernels.between:
            return LayerPlacement(layers)
        between = None if self.widths.activation == FLOAT else self.activation_spec(self.add_bits, engine_spec)
        return FusedPlacement(layers, between, kernels, not self.fuse, self.quantize_before_activation)

    def spec(self, bits: BitWidths, engine_spec: EngineSpec) -> LayerSpec:
        return LayerSpec(self.weight_spec(bits, engine_spec), self.activation_spec(bits.activation, engine_spec))

    def activation_grid(self, bits: int, engine_spec: EngineSpec) -> Grid:
        return Grid.of(
            bits, engine_spec.activation != "uint8", engine_spec.activation == "int8_symmetric", self.power_of_two
        )

    def activation_spec(self, bits: int, engine_spec: EngineSpec) -> QuantizationSpec | None:
        if bits == FLOAT:
            return None
        find = partial(OBSERVERS[self.observer], self.percentile)
        dtype = torch.uint8 if engine_spec.activation == "uint8" else torch.int8
        return specification(dtype, FakeQuantize, self.activation_grid(bits, engine_spec), observe=find)

    def weight_grid(self, bits: int, engine_spec: EngineSpec) -> Grid:
        symmetric = self.weight_symmetric
        if self.reduce_range and self.for_engines and engine_spec.activation == "uint8":
            return Grid(-63, 63, symmetric, self.power_of_two)
        return Grid.of(
            bits, signed=True, symmetric=symmetric, power_of_two=self.power_of_two, narrow=symmetric and bits == 8
        )

    def weight_spec(self, bits: BitWidths, engine_spec: EngineSpec) -> QuantizationSpec | None:
        if bits.weight == FLOAT:
            return None
        kind = WeightFakeQuantize if self.for_engines else PackedFakeQuantize
        axis = 0 if self.per_channel or self.group_size else None
        find = partial(OBSERVERS[self.weight_observer], self.percentile)
        return specification(
            torch.int8, kind, self.weight_grid(bits.weight, engine_spec), observe=find, axis=axis, group=self.group_size
        )


def _check_widths(**options: int | str) -> None:
    for name, bits in options.items():
        widths = BitWidths.parse(bits)
        if not {widths.weight, widths.activation} <= {*range(2, 9), FLOAT}:
            raise UserError(f"method.{name}={bits} is out of range; give 2 to 8 bits, or 32 for floating point.")


def specification(dtype: torch.dtype, quantizer: type[FakeQuantize], grid: Grid, **options: Any) -> QuantizationSpec:
    """A spec in the sense of PT2E, which makes a quantizer with these options for each tensor that has the spec."""
    axis = options.get("axis")
    return QuantizationSpec(
        dtype=dtype, observer_or_fake_quant_ctr=quantizer.with_args(grid=grid, **options), quant_min=grid.quant_min,
        quant_max=grid.quant_max, qscheme=SCHEMES[axis is not None, grid.symmetric], ch_axis=axis,
    )  # fmt: skip


def products_saturate() -> bool:
    """Whether integer kernels on this machine add pairs of uint8 x int8 products in 16 bits, which may saturate."""
    return platform.machine() in ("x86_64", "AMD64") and not torch.cpu._is_vnni_supported()


def observe(prepared: GraphModule, images: Images, batch: int) -> None:
    """Show images x[N,C,H,W] to all quantizers, `batch` of them at a time."""
    with torch.no_grad():
        for chunk in in_steps(images, batch):
            prepared(chunk)
