"""Quantisation arithmetic as pure functions: grids, scales, rounding, errors, and integers packed into bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SMALLEST_WIDTH = 1e-30  # of the range of a histogram
PIECE = 2**15  # elements that fit a core's own cache with a few temporary tensors, and that torch leaves to one thread


@dataclass(frozen=True)
class Grid:
    """The integers that values are rounded to. An integer stands for the value (integer - zero_point) * scale.

    Attributes:
        quant_min: The smallest integer.
        quant_max: The largest integer.
        symmetric: Whether the zero point is 0.
        power_of_two: Whether the scale is a power of two, so that rescaling is a bit shift.
    """

    quant_min: int
    quant_max: int
    symmetric: bool
    power_of_two: bool = False

    @classmethod
    def of(cls, bits: int, signed: bool, symmetric: bool, power_of_two: bool = False, narrow: bool = False) -> Grid:
        """Make a grid of all integers of `bits` bits.

        Args:
            bits: Bits of one integer.
            signed: Whether half of the integers are negative. Otherwise they start at 0.
            symmetric: Whether the zero point is 0.
            power_of_two: Whether the scale is a power of two.
            narrow: Whether to leave out the lowest integer, so that a signed grid reaches equally far on both sides
                of 0.
        """
        lowest = -(2 ** (bits - 1)) if signed else 0
        return cls(lowest + narrow, lowest + 2**bits - 1, symmetric, power_of_two)

    @property
    def bits(self) -> int:
        """The number of bits that one integer takes."""
        return (self.quant_max - self.quant_min).bit_length()


def scale_and_zero_point(low: Tensor, high: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Find the scales and zero points with which a grid covers the given ranges and represents 0 exactly.

    This follows Jacob et al., "Quantization and Training of Neural Networks", 2018, equations 1 and 13. A range that
    does not contain 0 is widened until it does.

    Args:
        low: The lower end of each range, low[R] or of any other shape.
        high: The upper end of each range, in the shape of `low`.
        grid: The grid that covers the ranges.

    Returns:
        scale[R] in float32 and zero_point[R] in int32.
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
    """Round x to the nearest integers of the grid. Halves are rounded to the even one.

    Args:
        x: Values x[R,N].
        scale: scale[R,1].
        zero_point: zero_point[R,1].
        grid: The grid whose integers are used.

    Returns:
        The integers [R,N], as floats.
    """
    return (torch.round(x / scale) + zero_point).clamp(grid.quant_min, grid.quant_max)


def dequantize(integers: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return (integers - zero_point) * scale


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    """Round x to the values of the grid. The shapes of scale and zero_point must broadcast to the shape of x."""
    return dequantize(quantize(x, scale, zero_point, grid), scale, zero_point)


class _LearnedStep(torch.autograd.Function):
    """The operator behind `learned_fake_quantize`, with a gradient written by hand.

    On a CPU it is four times faster than torch's own operator. This matters because the operator makes up nearly all
    that training with quantisation costs beyond ordinary training.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, low: Tensor | int, high: Tensor | int, gradient_factor: float
    ) -> Tensor:
        steps = x * scale.reciprocal()
        # Without a gradient, the steps need not be kept, and a large tensor less is made.
        clamp = torch.clamp if any(ctx.needs_input_grad) else torch.clamp_
        ctx.save_for_backward(steps, scale)
        ctx.low, ctx.high, ctx.gradient_factor = low, high, gradient_factor
        # The limits are either two tensors or two numbers, which their types do not say.
        return clamp(steps, low, high).round_().mul_(scale)  # type: ignore[arg-type]

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
    """Round x to multiples of the scale, from low * scale to high * scale, with gradients for x and for the scale.

    This computes the same as `fake_quantize` when low = quant_min - zero_point and high = quant_max - zero_point.
    Inside the range, gradients pass straight through to x. The gradient of the scale is the one of LSQ (Esser et al.,
    "Learned Step Size Quantization", 2020, equation 3).

    Args:
        x: Values to round.
        scale: Step between two multiples. It has as many dimensions as x, or a single value.
        low: Lowest multiple. It has as many dimensions as x, or a single value.
        high: Highest multiple. It has as many dimensions as x, or a single value.
        gradient_factor: What the gradient of the scale is multiplied by.

    Returns:
        The rounded values, in the shape of x.
    """
    rounded: Tensor = _LearnedStep.apply(x, scale, low, high, gradient_factor)
    return rounded


def as_rows(x: Tensor, axis: int | None, group: int | None = None) -> Tensor:
    """Reshape x to [R,N], with one row per scale.

    Args:
        x: Tensor of any shape.
        axis: Axis along which each index becomes a row. None makes the whole tensor one row.
        group: Number of values in a group. Each index of `axis` is split into groups, every group becomes a row, and a
            last group that is not full is filled up with zeros. None leaves the rows whole.
    """
    if axis is None:
        return x.reshape(1, -1)
    rows = x.movedim(axis, 0).reshape(x.shape[axis], -1)
    if group is None:
        return rows
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % group))
    return padded.reshape(-1, group)


def from_rows(rows: Tensor, shape: torch.Size, axis: int | None) -> Tensor:
    """Undo `as_rows`: drop the zeros that filled up the groups, and give the values their `shape` back."""
    if axis is None:
        return rows.reshape(shape)
    moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    count = shape.numel() // shape[axis]
    return rows.reshape(shape[axis], -1)[:, :count].reshape(moved).movedim(0, axis)


def pieces(rows: Tensor) -> Iterator[Tensor]:
    """Cut rows[R,N] into pieces[R,n] of at most PIECE elements, or of one column.

    What several operators compute of a piece, one after the other, stays in the cache. With whole activations every one
    of them would read and write memory, most would first have to be given fresh memory, and on a busy machine each
    would wait for its slowest thread.
    """
    return iter(rows.split(max(1, PIECE // len(rows)), 1))


def count_in_bins(values: Tensor, low: float, high: float, bins: int, counts: Tensor | None = None) -> Tensor:
    """Count how many values lie in each of equal bins from `low` to `high`.

    Args:
        values: values[N], none of which is below `low` or above `high`.
        low: The lower end of the first bin.
        high: The upper end of the last bin.
        bins: How many bins there are.
        counts: How often each value counts, int64[N]. Once if None.

    Returns:
        int64[bins].
    """
    factor = bins / max(high - low, SMALLEST_WIDTH)
    found = torch.zeros(bins, dtype=torch.int64, device=values.device)
    for start in range(0, len(values), PIECE):
        indices = values[start : start + PIECE].sub(low).mul_(factor).clamp_(0, bins - 1).int()
        weights = None if counts is None else counts[start : start + PIECE].double()
        found += torch.bincount(indices, weights, bins).long()
    return found


def sqnr_db(reference: Tensor, approximation: Tensor) -> float:
    """Compute the signal-to-quantisation-noise ratio in decibels, 10 log10(sum x^2 / sum (x - q)^2).

    Args:
        reference: The exact values x.
        approximation: The rounded values q.

    Returns:
        The ratio, which is infinite when there is no noise.
    """
    return decibels(power(reference), power(reference.double() - approximation.double()))


def power(x: Tensor) -> float:
    """Sum of the squares of x, added up in float64."""
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise), which is infinite without noise and minus infinity without a signal."""
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def pack(integers: Tensor, bits: int, lowest: int) -> Tensor:
    """Pack integers into bytes without gaps: eight values take `bits` bytes, lowest bit first.

    Args:
        integers: Integers of any shape, from `lowest` to lowest + 2^bits - 1.
        bits: Bits per value.
        lowest: The integer that is stored as 0.

    Returns:
        uint8[ceil(count / 8) * bits].

    Raises:
        ValueError: An integer is out of range.
    """
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
    """Read back integers that `pack` has packed.

    Value i of a group of eight lies in the bits that start at bit i * bits of the group's `bits` bytes.

    Args:
        packed: uint8[ceil(count / 8) * bits].
        bits: Bits per value.
        lowest: The integer that is stored as 0.
        count: How many integers to read.

    Returns:
        int16[count].
    """
    groups = packed.reshape(-1, bits).to(torch.int16)
    # Every value is read from two neighbouring bytes, so the last byte needs one after it.
    groups = torch.nn.functional.pad(groups, (0, 1))
    first = torch.arange(8) * bits
    low, high = groups[:, first // 8], groups[:, first // 8 + 1]
    values = ((low.int() | (high.int() << 8)) >> (first % 8).int()) & (2**bits - 1)
    return values.reshape(-1)[:count].to(torch.int16) + lowest
