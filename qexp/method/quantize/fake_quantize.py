"""Modules that stand in a graph: the quantizer of one tensor, and the packed weight that it may leave behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import ObserverBase

from qexp.method.quantize.numerics import (
    Grid,
    as_rows,
    dequantize,
    from_rows,
    learned_fake_quantize,
    pack,
    quantize,
    scale_and_zero_point,
    unpack,
)
from qexp.method.quantize.observers import Observer
from qexp.types import UserError

SCHEMES = {
    (True, True): torch.per_channel_symmetric, (True, False): torch.per_channel_affine,
    (False, True): torch.per_tensor_symmetric, (False, False): torch.per_tensor_affine,
}  # fmt: skip


LEARNING = ("lsq", "pact", "moving_average")  # how a scale can change in training


class FakeQuantize(ObserverBase):
    """Observes a tensor and lets it through, until `fix` finds scale[R] and zero_point[R]. From then on it rounds.

    Args:
        observe: Makes the observer.
        grid: The grid to round to.
        axis: Axis of the channels that have a scale each, or None for a single scale.
        group: How many values of a channel share a scale, or None for all of them.
        spec: What else PT2E passes to a quantizer. Only `dtype` is used.
    """

    def __init__(
        self,
        observe: Callable[[], Observer],
        grid: Grid,
        axis: int | None = None,
        group: int | None = None,
        **spec: Any,
    ):
        super().__init__(spec["dtype"], is_dynamic=False)
        self.observer, self.grid, self.axis, self.group = observe(), grid, axis, group
        # Attributes that conversion to a Q/DQ graph reads.
        self.quant_min, self.quant_max, self.ch_axis = grid.quant_min, grid.quant_max, axis
        self.qscheme = SCHEMES[axis is not None, grid.symmetric]
        self.fixed = self.seen = False
        self.enabled = True
        self.learning = ""  # how the scale changes in training: one of LEARNING, or "" for not at all
        self.gradient_factor = 1.0  # multiplies the gradient of the scale
        self.scale: Tensor
        self.register_buffer("scale", None)
        self.zero_point: Tensor
        self.register_buffer("zero_point", None)

    def rows(self, x: Tensor) -> Tensor:
        return as_rows(x, self.axis, self.group)

    def forward(self, x: Tensor) -> Tensor:
        if not self.fixed:
            self.seen = True
            self.observer.observe(self.rows(x.detach()))
            return x
        if not self.enabled:
            return x
        x = x.float()
        if self.training and self.learning == "moving_average":
            self.observer.observe(self.rows(x.detach()))
            self.scale, self.zero_point = scale_and_zero_point(*self.observer.range(self.grid), self.grid)
        if self.training and self.learning == "pact":
            x = self.clipped(x)
            return x + (self.rounded(x.detach()).detach() - x.detach())
        return self.rounded(x)

    def clipped(self, x: Tensor) -> Tensor:
        """Clip x to the range of the grid.

        Only values that are clipped move the end of the range in training (Choi et al., "PACT", 2018, equation 3).
        """
        low, high = (
            (limit - self.zero_point) * self.positive_scale for limit in (self.grid.quant_min, self.grid.quant_max)
        )
        return torch.minimum(torch.maximum(x, low), high)

    def rounded(self, x: Tensor) -> Tensor:
        """Round x to the grid, with the gradients of `learned_fake_quantize`."""
        if self.axis is None:
            zero = int(self.zero_point)
            low, high = self.grid.quant_min - zero, self.grid.quant_max - zero
            return learned_fake_quantize(x, self.positive_scale, low, high, self.gradient_factor)
        rows, zeros = self.rows(x), self.zero_point.float()[:, None]
        lows, highs = self.grid.quant_min - zeros, self.grid.quant_max - zeros
        return from_rows(
            learned_fake_quantize(rows, self.positive_scale[:, None], lows, highs, self.gradient_factor),
            x.shape,
            self.axis,
        )

    @property
    def positive_scale(self) -> Tensor:
        """The scale, kept above 0 since a step of the optimizer may take the scale of a small tensor past 0."""
        return self.scale.abs().clamp(min=torch.finfo(torch.float32).eps)

    def fix(self) -> None:
        """Set scale and zero point from what was observed, and round from now on."""
        if not self.fixed:
            self.scale, self.zero_point = scale_and_zero_point(*self.observer.range(self.grid), self.grid)
            self.fixed = True

    def learn_scale(self, learning: str = "lsq") -> None:
        """Make the scale a parameter that learns in training, by `lsq` or `pact`."""
        self.learning = learning
        if not isinstance(self.scale, nn.Parameter):
            scale = self.scale
            del self.scale
            self.scale = nn.Parameter(scale)

    def keep_scale(self) -> None:
        """Undo `learn_scale` and keep the scale as it is now."""
        self.learning = ""
        if isinstance(self.scale, nn.Parameter):
            scale = self.positive_scale.detach()
            del self.scale
            self.register_buffer("scale", scale)

    def calculate_qparams(self, **options: Any) -> tuple[Tensor, Tensor]:
        self.fix()
        return self.scale.detach(), self.zero_point


class WeightFakeQuantize(FakeQuantize):
    """The quantizer of a constant. As its value is the same in every call, only the first call is observed."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.seen and not self.fixed else super().forward(x)


class PackedFakeQuantize(WeightFakeQuantize):
    """Leaves the weight in the graph as packed integers.

    This is for bit-widths that no engine has kernels for. Stored as int8, such a weight would not show its true size.
    """

    def convert(self, model: GraphModule, node: Node) -> None:
        """Replace the quantizer by a `PackedWeight`. This is called by `convert_pt2e` with the quantizer's own node."""
        source = node.args[0]
        assert isinstance(source, Node) and source.op == "get_attr" and isinstance(source.target, str), (
            "only constants are packed"
        )
        weight = attrgetter(source.target)(model).detach()
        name = f"{source.target.replace('.', '_')}_packed"
        model.add_submodule(name, PackedWeight.of(weight, self))
        with model.graph.inserting_before(node):
            unpacked = model.graph.call_module(name)
        unpacked.meta = dict(node.meta)
        node.replace_all_uses_with(unpacked)
        model.graph.erase_node(node)


class PackedWeight(nn.Module):
    """A weight that is stored as packed integers of 2 to 8 bits and unpacked in every call.

    Args:
        packed: The integers as `pack` returns them, eight of them in as many bytes as one of them has bits.
        scale: scale[R].
        zero_point: zero_point[R].
        grid: The grid of the integers.
        shape: Shape of the weight.
        axis: Axis of the channels that have a scale each, or None for a single scale.
        group: How many values of a channel share a scale, or None for all of them.
    """

    packed: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        packed: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        grid: Grid,
        shape: torch.Size,
        axis: int | None,
        group: int | None,
    ):
        super().__init__()
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.grid, self.shape, self.axis, self.group = grid, shape, axis, group

    @classmethod
    def of(cls, weight: Tensor, quantizer: FakeQuantize) -> PackedWeight:
        """Pack a weight with the scale and zero point of its quantizer."""
        scale, zero_point = quantizer.calculate_qparams()
        grid = quantizer.grid
        integers = quantize(quantizer.rows(weight), scale[:, None], zero_point[:, None], grid).to(torch.int16)
        packed = pack(integers, grid.bits, grid.quant_min)
        return cls(
            packed, scale.clone(), zero_point.to(torch.int8), grid, weight.shape, quantizer.axis, quantizer.group
        )

    def integers(self) -> Tensor:
        """The stored integers [R,N], in int16."""
        rows = len(self.scale)
        count = self.shape.numel() if self.axis is None else self.shape.numel() // self.shape[self.axis]
        per_row = count if self.group is None else self.group
        return unpack(self.packed, self.grid.bits, self.grid.quant_min, rows * per_row).reshape(rows, per_row)

    def forward(self) -> Tensor:
        return from_rows(
            dequantize(self.integers(), self.scale[:, None], self.zero_point[:, None]), self.shape, self.axis
        )


def quantizers(prepared: nn.Module, every_name: bool = False) -> dict[str, FakeQuantize]:
    """Find all quantizers of a prepared graph, by the name of their module.

    Args:
        prepared: The prepared graph.
        every_name: Whether a quantizer that several tensors share is listed under all of its names, not only the first.
    """
    modules = prepared.named_modules(remove_duplicate=not every_name)
    return {name: module for name, module in modules if isinstance(module, FakeQuantize)}


@contextmanager
def in_floating_point(prepared: nn.Module) -> Iterator[None]:
    """A context in which all quantizers of a prepared graph let everything through as it is."""
    every = quantizers(prepared).values()
    for quantizer in every:
        quantizer.enabled = False
    try:
        yield
    finally:
        for quantizer in every:
            quantizer.enabled = True


def fix_all(prepared: GraphModule) -> None:
    """Set the scales of all quantizers from what they have observed.

    Raises:
        UserError: A quantizer has observed nothing. The message names every tensor of which this is true.
    """
    found = quantizers(prepared)
    blind = {name for name, quantizer in found.items() if not quantizer.seen}
    if blind:
        places = [str(n.args[0]) for n in prepared.graph.nodes if n.op == "call_module" and n.target in blind]
        raise UserError(
            f"Not calibrated, their scales would mean nothing: {', '.join(places)}. Raise data.calibration_images."
        )
    for quantizer in found.values():
        quantizer.fix()
