"""Observers, which find the range of a tensor before it is rounded to a grid.

There is one observer for each value of the options `observer` (for activations) and `weight_observer`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from qexp.method.quantize.numerics import Grid, count_in_bins, fake_quantize, scale_and_zero_point

Range = tuple[Tensor, Tensor]
BINS = 2048
STEPS = 100  # candidates per search
CANDIDATES_AT_ONCE = 2**24  # elements of the largest temporary tensor of a search
COUNTED = 2**20  # values of a tensor that are counted at most, out of each step of images


class Observer(ABC):
    """Is shown tensors as rows[R,N], one row per scale, and is then asked for the range of each row."""

    @abstractmethod
    def observe(self, rows: Tensor) -> None:
        """Take rows[R,N] into account."""

    @abstractmethod
    def range(self, grid: Grid) -> Range:
        """Return low[R] and high[R], the ends of the ranges to use with this grid."""


def ends(rows: Tensor) -> Range:
    """The smallest and the largest value of each of rows[R,N]. Along an axis, torch takes three times as long."""
    if len(rows) > 1:
        return rows.aminmax(dim=1)
    low, high = rows.aminmax()
    return low[None], high[None]


class MinMax(Observer):
    """The range from the smallest to the largest value seen."""

    low: Tensor | None = None
    high: Tensor | None = None

    def observe(self, rows: Tensor) -> None:
        low, high = ends(rows)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    def range(self, grid: Grid) -> Range:
        assert self.low is not None and self.high is not None
        return self.low, self.high


class MovingAverage(MinMax):
    """Exponential moving averages of each batch's smallest and largest value (Jacob et al., 2018, section 3.1).

    Args:
        share: Share of the newest batch in the average.
    """

    def __init__(self, share: float = 0.1):
        self.share = share

    def observe(self, rows: Tensor) -> None:
        low, high = ends(rows)
        self.low = low if self.low is None else self.low + self.share * (low - self.low)
        self.high = high if self.high is None else self.high + self.share * (high - self.high)


class MeanMagnitude(Observer):
    """The range whose scale is 2 mean|x| / sqrt(quant_max), which LSQ starts from (Esser et al., 2020, section 2.1)."""

    def __init__(self) -> None:
        self.total, self.lowest = torch.zeros(1, dtype=torch.float64), torch.zeros(1)
        self.count = 0

    def observe(self, rows: Tensor) -> None:
        self.total = self.total.to(rows.device) + rows.abs().double().sum(1)
        self.lowest = torch.minimum(self.lowest.to(rows.device), rows.amin(1))
        self.count += rows.shape[1]

    def range(self, grid: Grid) -> Range:
        levels = grid.quant_max - grid.quant_min
        positive = torch.where(self.lowest < 0, levels // 2, levels)  # negative values take half of an affine grid
        if grid.symmetric:
            positive = torch.full_like(positive, grid.quant_max)
        scale = 2 * self.total / self.count / positive.sqrt()
        return (grid.quant_min if grid.symmetric else positive - levels) * scale, positive * scale


class Histogram(Observer):
    """Counts the values of each row in BINS equal bins, from which `search` then chooses a range.

    The bins are widened when values outside their range are seen. Since only counts are kept, calibration takes the
    same memory for any number of images. The ends are those of all values, but of a large tensor only every n-th value
    is counted, n times, since counting all of them would take longer than the network.

    Args:
        search: Chooses low[R] and high[R] from the counts[R,BINS], the centres[R,BINS] of the bins, and a grid.
    """

    def __init__(self, search: Callable[[Tensor, Tensor, Grid], Range]):
        self.search = search
        self.counts: Tensor | None = None

    def observe(self, rows: Tensor) -> None:
        low, high = ends(rows)
        low, high = low.clamp(max=0), high.clamp(min=0)  # every grid contains 0
        if self.counts is None:
            self.low, self.high = low, high
            self.counts = torch.zeros(len(rows), BINS, dtype=torch.int64, device=rows.device)
        elif bool((low < self.low).any() or (high > self.high).any()):
            centres, counts = self.centres(), self.counts
            self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
            self.counts = self._count(centres, counts)
        stride = sampling_stride(rows.shape[1])
        self.counts += stride * self._count(rows[:, ::stride])

    def _count(self, rows: Tensor, counts: Tensor | None = None) -> Tensor:
        """How many of the values rows[R,N], each taken counts[R,N] times, lie in each bin, [R,BINS]."""
        times = [None] * len(rows) if counts is None else counts
        limits = zip(rows, self.low.tolist(), self.high.tolist(), times, strict=True)
        return torch.stack([count_in_bins(row, low, high, BINS, seen) for row, low, high, seen in limits])

    def centres(self) -> Tensor:
        """The centres of the bins, [R,BINS]."""
        return (
            self.low[:, None]
            + (self.high - self.low)[:, None] * (torch.arange(BINS, device=self.low.device) + 0.5) / BINS
        )

    def range(self, grid: Grid) -> Range:
        assert self.counts is not None
        return self.search(self.counts, self.centres(), grid)


def sampling_stride(values: int) -> int:
    """The step in which `values` values, those of x[B,C,H,W], are counted: the smallest that leaves at most COUNTED.

    It has no divisor in common with their number, so that it meets every row, column and channel as often as any other.
    """
    stride = math.ceil(values / COUNTED)
    while math.gcd(stride, values) > 1:
        stride += 1
    return stride


def squared_error(counts: Tensor, centres: Tensor, low: Tensor, high: Tensor, grid: Grid) -> Tensor:
    """Add up the squared errors of rounding a histogram's values to a grid, for each of several candidate ranges.

    Args:
        counts: How many values lie in each bin, counts[R,B].
        centres: The centre of each bin, centres[R,B].
        low: The lower ends of K candidate ranges per row, low[R,K].
        high: The upper ends of the candidates, high[R,K].
        grid: The grid that covers each candidate range.

    Returns:
        The sum of squared errors for each candidate, [R,K].
    """
    errors, counts = [], counts.float()
    at_once = max(1, CANDIDATES_AT_ONCE // counts.numel())
    for lows, highs in zip(low.split(at_once, 1), high.split(at_once, 1), strict=True):
        scale, zero_point = (t[..., None] for t in scale_and_zero_point(lows, highs, grid))
        values = centres[:, None, :]
        errors.append((counts[:, None, :] * (fake_quantize(values, scale, zero_point, grid) - values).square()).sum(-1))
    return torch.cat(errors, 1)


def _best(candidates: Tensor, errors: Tensor) -> Tensor:
    return candidates.gather(1, errors.argmin(1, keepdim=True))[:, 0]


def least_squares(counts: Tensor, centres: Tensor, grid: Grid) -> Range:
    """The range of least squared error, as histogram observers look for it: both ends are searched in turn."""
    low, high = mse(counts, centres, grid)
    lowest, highest = centres[:, 0].clamp(max=0), centres[:, -1].clamp(min=0)
    shares = torch.linspace(0, 1, STEPS + 1, device=counts.device)
    for _ in range(2):
        highs = highest[:, None] * shares
        high = _best(highs, squared_error(counts, centres, low[:, None].expand_as(highs), highs, grid))
        lows = lowest[:, None] * shares
        low = _best(lows, squared_error(counts, centres, lows, high[:, None].expand_as(lows), grid))
    return low, high


def mse(counts: Tensor, centres: Tensor, grid: Grid) -> Range:
    """The range of least squared error among those whose ends are shrunk by the same factor, 1 % to 100 %.

    The objective is the one of Banner et al., "Post Training 4-bit Quantization", 2019. A grid search over measured
    errors takes the place of their closed form.
    """
    shares = torch.linspace(1 / STEPS, 1, STEPS, device=counts.device)
    lows, highs = centres[:, :1].clamp(max=0) * shares, centres[:, -1:].clamp(min=0) * shares
    errors = squared_error(counts, centres, lows, highs, grid)
    return _best(lows, errors), _best(highs, errors)


def percentile(share: float) -> Callable[[Tensor, Tensor, Grid], Range]:
    """Make a search for the range that holds `share` percent of the values.

    If there are values on both sides of 0, the same share is cut off at either end. Otherwise only one end is cut.
    """

    def search(counts: Tensor, centres: Tensor, grid: Grid) -> Range:
        cumulated = counts.double().cumsum(1) / counts.sum(1, keepdim=True)
        cut = (100 - share) / 100
        two_sided = (centres[:, 0] < 0) & (centres[:, -1] > 0)
        cut_off = torch.where(two_sided, cut / 2, cut)[:, None]
        first = (cumulated > cut_off).int().argmax(1, keepdim=True)
        last = (cumulated >= 1 - cut_off).int().argmax(1, keepdim=True)
        return centres.gather(1, first)[:, 0].clamp(max=0), centres.gather(1, last)[:, 0].clamp(min=0)

    return search


def entropy(counts: Tensor, centres: Tensor, grid: Grid) -> Range:
    """The range up to the threshold at which rounding |x| loses the least information (Kullback-Leibler divergence).

    This follows Migacz, "8-bit Inference with TensorRT", 2017. Values above a threshold are counted in the last bin
    before it, as clipping would do. The result is compared with the same bins after rounding, where the values of each
    level are spread evenly over the level's occupied bins.
    """
    lowest, highest = centres[:, 0].clamp(max=0), centres[:, -1].clamp(min=0)
    largest = torch.maximum(-lowest, highest)
    folded = torch.zeros_like(counts)
    bins = (centres.abs() / largest.clamp(min=1e-30)[:, None] * BINS).long().clamp(max=BINS - 1)
    folded.scatter_add_(1, bins, counts)
    one_sided = ((lowest >= 0) | (highest <= 0)) & (not grid.symmetric)
    best = torch.empty_like(largest)
    for chosen, levels in ((one_sided, 2**grid.bits), (~one_sided, 2 ** (grid.bits - 1))):
        if chosen.any():
            best[chosen] = _threshold(folded[chosen], levels) / BINS * largest[chosen]
    return torch.maximum(lowest, -best), torch.minimum(highest, best)


def _threshold(counts: Tensor, levels: int) -> Tensor:
    """The bins[R] at which clipping counts[R,B] causes the least divergence."""
    thresholds = torch.linspace(max(levels, BINS // STEPS), BINS, STEPS).long().unique()
    divergences = torch.stack([_divergence(counts, int(t), levels) for t in thresholds], 1)
    return thresholds.to(counts.device)[divergences.argmin(1)]


def _divergence(counts: Tensor, threshold: int, levels: int) -> Tensor:
    """The divergence KL[R] of counts[R,B] clipped at bin `threshold` from the same counts in `levels` levels."""
    kept = counts[:, :threshold].double()
    clipped = kept.clone()
    clipped[:, -1] += counts[:, threshold:].double().sum(1)
    level = (torch.arange(threshold, device=counts.device) * levels // threshold).expand_as(kept)
    occupied = (kept > 0).double()
    zeros = torch.zeros(len(kept), levels, dtype=torch.float64, device=counts.device)
    mass = zeros.scatter_add(1, level, kept)
    width = zeros.scatter_add(1, level, occupied)
    rounded = (mass / width.clamp(min=1)).gather(1, level) * occupied
    p, q = clipped / clipped.sum(1, keepdim=True), rounded / rounded.sum(1, keepdim=True).clamp(min=1e-30)
    # Clipping may put values into a bin that is empty after rounding. This has to cost much, but not infinitely much.
    tiny = 1e-12
    return torch.where(p > 0, p * torch.log(p / q.clamp(min=tiny)), 0).sum(1)


# Makers of observers by name. Each is given a percentile in percent, which only `percentile` uses.
OBSERVERS: dict[str, Callable[[float], Observer]] = {
    "minmax": lambda share: MinMax(),
    "moving_average": lambda share: MovingAverage(),
    "percentile": lambda share: Histogram(percentile(share)),
    "histogram": lambda share: Histogram(least_squares),
    "entropy": lambda share: Histogram(entropy),
    "mse": lambda share: Histogram(mse),
    "lsq": lambda share: MeanMagnitude(),
}
