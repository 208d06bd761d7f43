"""Ranges found from histograms against brute force on the tensors themselves."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from qexp.method.quantize.numerics import Grid
from qexp.method.quantize.observers import (
    BINS,
    OBSERVERS,
    STEPS,
    Histogram,
    MovingAverage,
    Observer,
    entropy,
    least_squares,
    percentile,
    sampling_stride,
)

INT4, UINT4, UINT8 = Grid(-8, 7, True), Grid(0, 15, False), Grid(0, 255, False)


def tensors() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    normal = torch.randn(4000, generator=random)
    laplace = normal.sign() * -torch.rand(4000, generator=random).log()
    skewed = torch.where(normal > 0, 4 * normal, 0.3 * normal)
    return {
        "normal": normal,
        "relu": normal.relu(),
        "laplace": laplace,
        "skewed": skewed,
        "negative": -normal.abs(),
        "offset": normal + 1,
    }


TENSORS = pytest.mark.parametrize("x", tensors().values(), ids=tensors())
COARSE = pytest.mark.parametrize("grid", [INT4, UINT4, Grid(-2, 1, True), Grid(0, 7, False)], ids=str)


def found(observer: Observer, grid: Grid, *batches: Tensor) -> tuple[float, float]:
    for batch in batches:
        observer.observe(batch.reshape(1, -1))
    low, high = observer.range(grid)
    return float(low), float(high)


def errors(x: Tensor, low: np.ndarray, high: np.ndarray, grid: Grid) -> np.ndarray:
    """Sum of squared errors of x rounded with each of the ranges low[K]..high[K], in float64."""
    low, high, values = np.minimum(low, 0)[:, None], np.maximum(high, 0)[:, None], x.double().numpy()
    if grid.symmetric:
        scale, zero = np.maximum(high / grid.quant_max, low / grid.quant_min), np.zeros_like(low)
    else:
        scale = np.maximum((high - low) / (grid.quant_max - grid.quant_min), 1e-7)
        zero = np.clip(np.rint(grid.quant_min - low / scale), grid.quant_min, grid.quant_max)
    scale = np.maximum(scale, 1e-7)
    rounded = (np.clip(np.rint(values / scale) + zero, grid.quant_min, grid.quant_max) - zero) * scale
    return ((rounded - values) ** 2).sum(1)


def test_minmax_sees_all_batches() -> None:
    batches = torch.randn(5, 100)
    assert found(OBSERVERS["minmax"](0), UINT8, *batches) == (float(batches.min()), float(batches.max()))


def test_moving_average_is_the_recurrence() -> None:
    batches = torch.randn(5, 100)
    low, high = (f(batches[0].double().numpy()) for f in (np.min, np.max))
    for batch in batches[1:].double().numpy():
        low, high = 0.8 * low + 0.2 * batch.min(), 0.8 * high + 0.2 * batch.max()
    assert found(MovingAverage(share=0.2), UINT8, *batches) == pytest.approx((low, high), rel=1e-5)


def test_lsq_starts_from_the_mean_magnitude() -> None:
    batches = torch.randn(3, 1000)
    step = 2 * np.abs(batches.double().numpy()).mean() / np.sqrt(7)  # Esser et al., 2020, section 2.1
    assert found(OBSERVERS["lsq"](0), INT4, *batches) == pytest.approx((-8 * step, 7 * step))


@TENSORS
@pytest.mark.parametrize("share", [90, 99, 99.9, 100])
def test_percentile_is_that_of_numpy(x: Tensor, share: float) -> None:
    low, high = found(OBSERVERS["percentile"](share), UINT8, x)
    values = x.double().numpy()
    two_sided = values.min() < 0 < values.max()
    cut = (100 - share) / 2 if two_sided else 100 - share
    expected = np.percentile(values, [cut, 100 - cut])
    bin_width = (max(values.max(), 0) - min(values.min(), 0)) / BINS
    # Where values are rare, the two neighbours of a percentile are more than a bin apart.
    neighbours = [
        np.percentile(values, [q, q], method=side)[0] for q in (cut, 100 - cut) for side in ("lower", "higher")
    ]
    tolerance = 2 * bin_width + max(neighbours[1] - neighbours[0], neighbours[3] - neighbours[2])
    assert low == (pytest.approx(expected[0], abs=tolerance) if values.min() < 0 else 0)
    assert high == (pytest.approx(expected[1], abs=tolerance) if values.max() > 0 else 0)


def test_percentile_counts_on_where_float32_would_stop() -> None:
    observer = Histogram(percentile(99))
    observer.observe(torch.zeros(1, 8))
    assert observer.counts is not None
    observer.counts[0, 0] = 2**24
    observer.observe(torch.zeros(1, 8))
    assert observer.counts.sum().item() == 2**24 + 8
    counts = torch.ones(1, BINS, dtype=torch.float64)
    counts[0, 0] = 2**24 + 1
    centres = torch.arange(BINS)[None] + 0.5
    assert percentile(100)(counts, centres, UINT8)[1].item() == BINS - 0.5, "all of them, however many"


@TENSORS
@COARSE
def test_mse_is_as_good_as_the_best_shrinking(x: Tensor, grid: Grid) -> None:
    low, high = found(OBSERVERS["mse"](0), grid, x)
    shares = np.linspace(1e-3, 1, 1000)
    brute = errors(x, min(float(x.min()), 0) * shares, max(float(x.max()), 0) * shares, grid).min()
    assert errors(x, np.array([low]), np.array([high]), grid)[0] < 1.03 * brute


@TENSORS
@COARSE
def test_least_squares_is_as_good_as_the_best_range(x: Tensor, grid: Grid) -> None:
    low, high = found(OBSERVERS["histogram"](0), grid, x)
    ends = np.meshgrid(min(float(x.min()), 0) * np.linspace(0, 1, 45), max(float(x.max()), 0) * np.linspace(0, 1, 45))
    brute = errors(x, *(end.ravel() for end in ends), grid).min()
    assert errors(x, np.array([low]), np.array([high]), grid)[0] < 1.05 * brute


def divergence(counts: np.ndarray, threshold: int, levels: int) -> float:
    """The KL divergence of Migacz, 2017, by SciPy.

    It is that of the clipped distribution from the one that keeps only `levels` levels.
    """
    clipped = counts[:threshold].copy()
    clipped[-1] += counts[threshold:].sum()
    merged = np.zeros(threshold)
    for level in range(levels):
        members = [i for i in range(threshold) if i * levels // threshold == level and counts[i] > 0]
        merged[members] = counts[members].mean() if members else 0
    return float(scipy.stats.entropy(clipped, np.maximum(merged, 1e-12 * merged.sum())))


@pytest.mark.parametrize("tail", [0.0, 1e-3])
def test_entropy_is_the_published_algorithm(tail: float) -> None:
    centres = (np.arange(BINS) + 0.5) / BINS
    random = np.random.default_rng(0)
    counts = np.rint(random.uniform(0.8, 1.2, BINS) * 1e5 * np.exp(-((centres / 0.15) ** 2)) + 1e5 * tail)
    thresholds = np.linspace(max(16, BINS // STEPS), BINS, STEPS).astype(int)
    divergences = [divergence(counts, t, 16) for t in thresholds]
    best = thresholds[np.argmin(divergences)] / BINS
    low, high = entropy(torch.from_numpy(counts)[None], torch.from_numpy(centres).float()[None], UINT4)
    assert low == 0 and high.item() == pytest.approx(best, rel=1e-3)
    assert 0 < np.argmin(divergences) < len(thresholds) - 1, "not an end of the search"


def test_entropy_clips_a_heavy_tail_and_nothing_of_a_uniform_distribution() -> None:
    random = torch.Generator().manual_seed(0)
    uniform = torch.rand(100_000, generator=random)
    assert found(OBSERVERS["entropy"](0), UINT8, uniform)[1] > 0.97
    spread = found(OBSERVERS["entropy"](0), Grid(-128, 127, True), 2 * uniform - 1)
    assert spread[0] < -0.97 and spread[1] > 0.97
    heavy = torch.cat([torch.randn(100_000, generator=random), torch.tensor([-100.0, 100.0])])
    low, high = found(OBSERVERS["entropy"](0), Grid(-128, 127, True), heavy)
    assert -20 < low < -3 and 3 < high < 20


def test_a_histogram_counts_every_value_of_a_large_activation() -> None:
    x = torch.randn(3, 50_001, generator=torch.Generator().manual_seed(0))
    observer = Histogram(least_squares)
    observer.observe(x)
    assert observer.counts is not None
    for row, counts, low, high in zip(x, observer.counts, observer.low, observer.high, strict=True):
        expected = np.histogram(row.numpy(), BINS, (float(low), float(high)))[0]
        assert counts.sum() == 50_001 and np.abs(expected - counts.numpy()).sum() <= 100, "but for values on an edge"


def test_a_histogram_counts_a_fair_share_of_a_very_large_activation() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(8, 24, 112, 112, generator=random)
    x *= torch.linspace(0.1, 3, 24)[:, None, None]  # channels differ,
    x[:, :, ::7] += 5  # and so do rows,
    x[..., 0] -= 20  # and columns
    x[1, 2, 3, 4], x[4, 3, 2, 1] = 60.0, -70.0  # values that are hardly ever counted
    observer = Histogram(percentile(99.9))
    observer.observe(x.reshape(1, -1))
    assert observer.counts is not None
    assert (float(observer.low), float(observer.high)) == (-70, 60)
    expected = np.histogram(x.numpy(), BINS, (-70, 60))[0]
    assert int(observer.counts.sum()) == pytest.approx(x.numel(), abs=3)
    assert np.abs(np.cumsum(expected - observer.counts[0].numpy())).max() <= 0.002 * x.numel()
    for end, q in zip(observer.range(UINT8), (0.05, 99.95), strict=True):
        assert float(end) == pytest.approx(np.percentile(x.numpy(), q), abs=0.3)


@pytest.mark.parametrize("values", [2**20, 2**20 + 1, 16 * 96 * 112 * 112, 7 * 5 * 3 * 2**20, 16 * 1001 * 221 * 221])
def test_the_stride_shares_no_divisor_with_what_it_goes_through(values: int) -> None:
    stride = sampling_stride(values)
    assert values / stride <= 2**20 and np.gcd(stride, values) == 1
    assert stride == 1 or stride < 3 * values / 2**20 + 12


def test_a_histogram_grows_with_what_it_sees() -> None:
    random = torch.Generator().manual_seed(0)
    batches = [size * torch.randn(1, 5000, generator=random) for size in (0.5, 1, 3, 2)]
    grown, whole = Histogram(least_squares), Histogram(least_squares)
    for batch in batches:
        grown.observe(batch)
    whole.observe(torch.cat(batches, 1))
    assert grown.counts is not None and whole.counts is not None
    assert grown.counts.sum() == 20_000
    # What was counted before the range grew may lie a bin of that time off.
    distance = (grown.counts.cumsum(1) - whole.counts.cumsum(1)).abs().max()
    assert distance < 0.01 * 20_000
    edges = np.histogram(torch.cat(batches, 1).numpy(), BINS, (float(whole.low), float(whole.high)))[0]
    assert np.abs(edges - whole.counts[0].numpy()).sum() <= 0.001 * 20_000, (
        "the same bins as NumPy's, but for values on an edge"
    )
    for grid in (INT4, UINT8):
        for one, other in zip(grown.range(grid), whole.range(grid), strict=True):
            torch.testing.assert_close(one, other, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("grid", [INT4, UINT4, Grid(-128, 127, False)], ids=str)
@pytest.mark.parametrize("name", OBSERVERS)
def test_rows_do_not_mind_each_other(name: str, grid: Grid) -> None:
    rows = torch.stack([*tensors().values(), torch.zeros(4000), 1e-3 * tensors()["normal"]])
    if name == "lsq":
        rows = rows[:1].repeat(2, 1) * torch.tensor([[1.0], [5.0]])  # one sign for all rows
    several = OBSERVERS[name](99.9)
    for batch in rows.split(1000, 1):
        several.observe(batch)
    low, high = several.range(grid)
    assert low.shape == high.shape == (len(rows),)
    for index, row in enumerate(rows):
        alone = found(OBSERVERS[name](99.9), grid, *row.split(1000))
        assert (float(low[index]), float(high[index])) == pytest.approx(alone, rel=1e-6, abs=1e-9)


def test_zeros_have_an_empty_range() -> None:
    for make in OBSERVERS.values():
        assert found(make(99.9), UINT8, torch.zeros(10)) == pytest.approx((0, 0), abs=1e-6)
