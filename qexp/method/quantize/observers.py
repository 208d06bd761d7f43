"""How the range of a tensor is found before it is rounded to a grid: one observer per option, for activations and weights.

An observer is shown tensors as rows[R,N], one row per scale, and then asked for low[R] and high[R]. Those that search look at a
histogram per row, so that calibration takes the same memory for any number of images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from qexp.method.quantize.numerics import Grid, fake_quantize, scale_and_zero_point

Range = tuple[Tensor, Tensor]
BINS = 2048
STEPS = 100  # candidates of a search
CANDIDATES_AT_ONCE = 2**24  # elements of the largest temporary tensor


class Observer(ABC):
    @abstractmethod
    def observe(self, rows: Tensor) -> None:
        """Take rows[R,N] into account."""

    @abstractmethod
    def range(self, grid: Grid) -> Range:
        """low[R] and high[R] for that grid."""


class MinMax(Observer):
    """The smallest and the largest value seen."""

    low: Tensor | None = None
    high: Tensor | None = None

    def observe(self, rows: Tensor) -> None:
        low, high = rows.aminmax(dim=1)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    def range(self, grid: Grid) -> Range:
        assert self.low is not None and self.high is not None
        return self.low, self.high


class MovingAverage(MinMax):
    """An exponential moving average of each batch's smallest and largest value (Jacob et al., 2018, section 3.1).

    share: of the newest batch.
    """

    def __init__(self, share: float = 0.1):
        self.share = share

    def observe(self, rows: Tensor) -> None:
        low, high = rows.aminmax(dim=1)
        self.low = low if self.low is None else self.low + self.share * (low - self.low)
        self.high = high if self.high is None else self.high + self.share * (high - self.high)


class MeanMagnitude(Observer):
    """The scale 2 mean|x| / sqrt(quant_max) that LSQ starts from (Esser et al., 2020, section 2.1)."""

    def __init__(self) -> None:
        self.total, self.lowest = torch.zeros(1, dtype=torch.float64), torch.zeros(1)
        self.count = 0

    def observe(self, rows: Tensor) -> None:
        self.total = self.total.to(rows.device) + rows.abs().double().sum(1)
        self.lowest = torch.minimum(self.lowest.to(rows.device), rows.amin(1))
        self.count += rows.shape[1]

    def range(self, grid: Grid) -> Range:
        levels = grid.quant_max - grid.quant_min
        positive = torch.where(self.lowest < 0, levels // 2, levels)  # values below 0 take half of an affine grid
        if grid.symmetric:
            positive = torch.full_like(positive, grid.quant_max)
        scale = 2 * self.total / self.count / positive.sqrt()
        return (grid.quant_min if grid.symmetric else positive - levels) * scale, positive * scale


class Histogram(Observer):
    """Counts in BINS equal bins per row, over a range that grows with what is seen; `search` chooses from them."""

    def __init__(self, search: Callable[[Tensor, Tensor, Grid], Range]):
        self.search = search
        self.counts: Tensor | None = None

    def observe(self, rows: Tensor) -> None:
        low, high = rows.aminmax(dim=1)
        low, high = low.clamp(max=0), high.clamp(min=0)  # every grid holds 0
        if self.counts is None:
            self.low, self.high = low, high
            self.counts = torch.zeros(
                len(rows), BINS, dtype=torch.float64, device=rows.device
            )  # float32 stops counting at 2^24
        elif bool((low < self.low).any() or (high > self.high).any()):
            centres, counts = self.centres(), self.counts
            self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
            self.counts = torch.zeros_like(counts).scatter_add_(1, self._bins(centres), counts)
        one = torch.ones((), dtype=torch.float64, device=rows.device)
        self.counts.scatter_add_(1, self._bins(rows), one.expand_as(rows))

    def _bins(self, values: Tensor) -> Tensor:
        width = (self.high - self.low).clamp(min=1e-30)[:, None]
        return ((values - self.low[:, None]) / width * BINS).long().clamp_(0, BINS - 1)

    def centres(self) -> Tensor:
        """[R,BINS]"""
        return (
            self.low[:, None]
            + (self.high - self.low)[:, None] * (torch.arange(BINS, device=self.low.device) + 0.5) / BINS
        )

    def range(self, grid: Grid) -> Range:
        assert self.counts is not None
        return self.search(self.counts, self.centres(), grid)


def squared_error(counts: Tensor, centres: Tensor, low: Tensor, high: Tensor, grid: Grid) -> Tensor:
    """Sum of squared errors [R,K] of values with counts[R,B] at centres[R,B] for the candidate ranges low[R,K]..high[R,K]."""
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
    """The range of least squared error, both ends searched by turns: what histogram observers look for."""
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
    """The range of least squared error among those with both ends shrunk by the same factor, 1 % to 100 %.

    Grid search as in Banner et al., "Post Training 4-bit Quantization", 2019, by error instead of by its closed form.
    """
    shares = torch.linspace(1 / STEPS, 1, STEPS, device=counts.device)
    lows, highs = centres[:, :1].clamp(max=0) * shares, centres[:, -1:].clamp(min=0) * shares
    errors = squared_error(counts, centres, lows, highs, grid)
    return _best(lows, errors), _best(highs, errors)


def percentile(share: float) -> Callable[[Tensor, Tensor, Grid], Range]:
    """The range that holds `share` percent of the values; as many are cut off at each end that has any."""

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
    """The threshold at which the rounded distribution of |x| loses the least information (Kullback-Leibler divergence).

    Migacz, "8-bit Inference with TensorRT", 2017: what lies above a threshold is added to the last bin before it, as clipping
    does; the same bins are then spread evenly over each level's share of the values.
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
    """The bins[R] of least divergence to clip counts[R,B] at."""
    thresholds = torch.linspace(max(levels, BINS // STEPS), BINS, STEPS).long().unique()
    divergences = torch.stack([_divergence(counts, int(t), levels) for t in thresholds], 1)
    return thresholds.to(counts.device)[divergences.argmin(1)]


def _divergence(counts: Tensor, threshold: int, levels: int) -> Tensor:
    """KL[R] of the counts[R,B] clipped at bin `threshold` against the same rounded to `levels` levels."""
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
    tiny = 1e-12  # a value that clipping put where rounding has none costs much, but not infinitely much
    return torch.where(p > 0, p * torch.log(p / q.clamp(min=tiny)), 0).sum(1)


OBSERVERS: dict[str, Callable[[float], Observer]] = {
    "minmax": lambda share: MinMax(),
    "moving_average": lambda share: MovingAverage(),
    "percentile": lambda share: Histogram(percentile(share)),
    "histogram": lambda share: Histogram(least_squares),
    "entropy": lambda share: Histogram(entropy),
    "mse": lambda share: Histogram(mse),
    "lsq": lambda share: MeanMagnitude(),
}  # by name, for a percentile in percent
