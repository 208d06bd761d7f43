"""The arithmetic of quantisation as pure functions: grids, scales, rounding, errors, and integers packed into bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """The integers quant_min..quant_max that values are rounded to: value = (integer - zero_point) * scale.

    symmetric: the zero point is 0; power_of_two: the scale is a power of two, so that rescaling is a shift.
    """

    quant_min: int
    quant_max: int
    symmetric: bool
    power_of_two: bool = False

    @classmethod
    def of(cls, bits: int, signed: bool, symmetric: bool, power_of_two: bool = False, narrow: bool = False) -> Grid:
        """All integers of `bits` bits; narrow: without the lowest, so that the range is the same on both sides of 0."""
        lowest = -(2 ** (bits - 1)) if signed else 0
        return cls(lowest + narrow, lowest + 2**bits - 1, symmetric, power_of_two)

    @property
    def bits(self) -> int:
        """Bits that one of its integers takes."""
        return (self.quant_max - self.quant_min).bit_length()


def scale_and_zero_point(low: Tensor, high: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """scale[R] float32 and zero_point[R] int32 with which the grid covers low[R]..high[R] and represents 0 exactly.

    Jacob et al., "Quantization and Training of Neural Networks", 2018, equations 1 and 13; a range that does not hold 0 is widened.
    """
    low, high = low.double().clamp(max=0), high.double().clamp(min=0)
    smallest = torch.finfo(torch.float32).eps
    if grid.symmetric:
        scale = (
            torch.maximum(high / grid.quant_max, low / min(grid.quant_min, -1))
            if grid.quant_min < 0
            else high / grid.quant_max
        )
    else:
        scale = (high - low) / (grid.quant_max - grid.quant_min)
    scale = scale.clamp(min=smallest)
    if grid.power_of_two:
        scale = torch.exp2(torch.ceil(torch.log2(scale) - 1e-9))
    scale = scale.float()
    if grid.symmetric:
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    zero_point = (grid.quant_min - low / scale.double()).round().clamp(grid.quant_min, grid.quant_max)
    return scale, zero_point.int()


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    """Integers (as float) of the grid nearest to x[R,N], with scale[R,1] and zero_point[R,1]; halves go to the even one."""
    return (torch.round(x / scale) + zero_point).clamp(grid.quant_min, grid.quant_max)


def dequantize(integers: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return (integers - zero_point) * scale


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    """x rounded to the grid's values; scale and zero_point have a shape that spreads over x's."""
    return dequantize(quantize(x, scale, zero_point, grid), scale, zero_point)


class _LearnedStep(torch.autograd.Function):
    """Written out because it is four times faster on a CPU than torch's operator for it, and nearly all that training adds."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, low: Tensor | int, high: Tensor | int, gradient_factor: float
    ) -> Tensor:
        steps = x * scale.reciprocal()
        ctx.save_for_backward(steps, scale)
        ctx.low, ctx.high, ctx.gradient_factor = low, high, gradient_factor
        return torch.clamp(steps, low, high).round_().mul_(scale)  # type: ignore[arg-type]  # both limits are of one kind

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        steps, scale = ctx.saved_tensors
        inside = torch.clamp(steps, ctx.low, ctx.high)
        of_x = gradients[0] * (inside == steps)
        of_scale = inside.round_().mul_(gradients[0]).addcmul_(of_x, steps, value=-1).sum_to_size(scale.shape)
        return of_x, of_scale.mul_(ctx.gradient_factor), None, None, None


def learned_fake_quantize(
    x: Tensor, scale: Tensor, low: Tensor | int, high: Tensor | int, gradient_factor: float = 1.0
) -> Tensor:
    """x rounded to multiples of the scale from low * scale to high * scale: fake_quantize with low = quant_min - zero_point.

    Gradients pass straight through to x inside that range, and are those of LSQ for the scale (Esser et al., "Learned Step Size
    Quantization", 2020, equation 3) times gradient_factor. scale, low and high have as many dimensions as x, or one value.
    """
    rounded: Tensor = _LearnedStep.apply(x, scale, low, high, gradient_factor)
    return rounded


def as_rows(x: Tensor, axis: int | None, group: int | None = None) -> Tensor:
    """x as [R,N], one row per scale: all of it, or one per index of `axis`, or those split into groups of `group` values.

    Where the last group is not full, it is filled up with zeros.
    """
    if axis is None:
        return x.reshape(1, -1)
    rows = x.movedim(axis, 0).reshape(x.shape[axis], -1)
    if group is None:
        return rows
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % group))
    return padded.reshape(-1, group)


def from_rows(rows: Tensor, shape: torch.Size, axis: int | None) -> Tensor:
    """The inverse of `as_rows`: a tensor of `shape`."""
    if axis is None:
        return rows.reshape(shape)
    moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    count = shape.numel() // shape[axis]
    return rows.reshape(shape[axis], -1)[:, :count].reshape(moved).movedim(0, axis)


def sqnr_db(reference: Tensor, approximation: Tensor) -> float:
    """Signal to quantisation noise ratio in decibels: 10 log10(sum x^2 / sum (x - q)^2); infinite without noise."""
    return decibels(power(reference), power(reference.double() - approximation.double()))


def power(x: Tensor) -> float:
    """Sum of the squares, added up in float64."""
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise); infinite without noise."""
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def pack(integers: Tensor, bits: int, lowest: int) -> Tensor:
    """integers[...] in lowest..lowest + 2^bits - 1 as uint8[ceil(count / 8) * bits]: eight values in `bits` bytes, lowest bit first."""
    values = integers.reshape(-1).long() - lowest
    if len(values) and (int(values.min()) < 0 or int(values.max()) >= 2**bits):
        raise ValueError(
            f"integers from {int(integers.min())} to {int(integers.max())} do not fit {bits} bits from {lowest}"
        )
    values = torch.nn.functional.pad(values, (0, -len(values) % 8)).reshape(-1, 8)
    stream = (values[:, :, None] >> torch.arange(bits)) & 1  # [G,8,bits]
    in_bytes = stream.reshape(-1, bits, 8)
    return (in_bytes << torch.arange(8)).sum(-1).to(torch.uint8).reshape(-1)


def unpack(packed: Tensor, bits: int, lowest: int, count: int) -> Tensor:
    """The first `count` integers (int16) of `pack`: value i of a group of eight lies in the bits from i * bits of its `bits` bytes."""
    groups = packed.reshape(-1, bits).to(torch.int16)
    groups = torch.nn.functional.pad(groups, (0, 1))  # so that the last value, too, has a byte after it
    first = torch.arange(8) * bits
    low, high = groups[:, first // 8], groups[:, first // 8 + 1]
    values = ((low.int() | (high.int() << 8)) >> (first % 8).int()) & (2**bits - 1)
    return values.reshape(-1)[:count].to(torch.int16) + lowest
