"""Time of one call in steady state, and speed-ups over fp32 measured in turns with it."""

from __future__ import annotations

import math
import statistics
import time

import numpy as np

from qexp.measure.base import Bench, Measure, Subject
from qexp.types import Measurement, UserError

LEAST_WINDOWS = 7  # the fewest pairs with a 95 % interval narrower than all of them


class Latency(Measure):
    """windows: turns of each subject, fewer (but at least LEAST_WINDOWS) where all would take more than budget_s seconds;
    calls, window_s: the least calls and seconds of one window; warmup_calls, warmup_s: the least of what is not counted before;
    resolution: by how much the same network differs between two processes, whatever their windows say (memory is laid out
    differently in each); intervals are widened by this share, which benchmarks/instruments.py measures.

    Errors: UserError for less than 2 windows of 1 call.
    """

    def __init__(
        self, windows: int, calls: int, window_s: float, warmup_calls: int, warmup_s: float, budget_s: float, resolution: float = 0.0
    ):
        if windows < 2 or calls < 1 or warmup_calls < 1:
            raise UserError(f"windows={windows}, calls={calls}, warmup_calls={warmup_calls}: at least 2 windows of 1 call are needed.")
        self.windows, self.calls, self.window_s, self.budget_s = windows, calls, window_s, budget_s
        self.warmup_calls, self.warmup_s, self.resolution = warmup_calls, warmup_s, resolution

    def measure(self, bench: Bench) -> list[Measurement]:
        if bench.subject.artifact.simulated:
            bench.notes["latency_ms"] = "no kernel computes in this format: its accuracy is simulated, a time would mean nothing"
            return []
        subjects = bench.subjects
        taken = self.take_turns(subjects)
        medians = [[statistics.median(window) for window in windows] for windows in taken]
        found = self.describe(taken[0], bench.subject)
        for name, other in (("speedup", bench.baseline), ("speedup_vs_best_fp32", bench.rival)):
            if other and other.identity != bench.subject.identity:
                found += speedup(name, medians[[s.identity for s in subjects].index(other.identity)], medians[0], self.resolution)
        if bench.rival:
            bench.notes["speedup_vs_best_fp32"] = f"the fastest fp32 engine here was {bench.rival.engine.name}"
        return found

    def take_turns(self, subjects: list[Subject]) -> list[list[list[float]]]:
        """Milliseconds of single calls, by subject and window: every subject's windows alternate with the others'."""
        for subject in subjects:
            self.warm_up(subject)
        windows: list[list[list[float]]] = [[] for _ in subjects]
        began = time.monotonic()
        for turn in range(self.windows):
            if turn >= LEAST_WINDOWS and time.monotonic() - began > self.budget_s:
                break
            for subject, taken in zip(subjects, windows, strict=True):
                taken.append(subject.window(self.calls, self.window_s))
        return windows

    def warm_up(self, subject: Subject) -> None:
        """Call until two windows in a row agree within 5 %, for ten times the least warm-up at most."""
        before = float("inf")
        for _ in range(10):
            now = statistics.median(subject.window(self.warmup_calls, self.warmup_s))
            if abs(now - before) <= 0.05 * now:
                return
            before = now

    def describe(self, windows: list[list[float]], subject: Subject) -> list[Measurement]:
        """Milliseconds per call, images per second, and the spread: interquartile range over the median (noisy above 0.1)."""
        samples = np.concatenate(windows)
        medians = [statistics.median(w) for w in windows]
        latency = statistics.median(medians)
        p25, p50, p75, p90, p99 = np.percentile(samples, (25, 50, 75, 90, 99))
        values = {
            "latency_ms": latency, "latency_ms_per_image": latency / subject.batch, "latency_mean_ms": samples.mean(),
            "latency_p50_ms": p50, "latency_p90_ms": p90, "latency_p99_ms": p99, "latency_std_ms": samples.std(ddof=1),
            "load_ms": subject.start["load_ms"], "first_call_ms": subject.start["first_call_ms"],
        }  # fmt: skip
        kept = {"latency_ms": tuple(float(s) for s in samples)}
        return [
            *(Measurement(name, float(value), "ms", samples=kept.get(name, ())) for name, value in values.items()),
            *_bounds("latency", "_ms", medians, "ms", self.resolution),
            Measurement("throughput_ips", 1000 * subject.batch / latency, "images/s"),
            Measurement("latency_spread", float((p75 - p25) / latency), "fraction"),
        ]


def speedup(name: str, baseline: list[float], candidate: list[float], resolution: float = 0.0) -> list[Measurement]:
    """Ratio of two subjects' window medians taken in turns, with its 95 % interval, widened by `resolution`.

    Window i of both ran side by side, so ratios are taken pair by pair, which cancels a drift of the machine.
    """
    ratios = [b / c for b, c in zip(baseline, candidate, strict=True)]
    return [Measurement(name, statistics.median(ratios), "x", samples=tuple(ratios)), *_bounds(name, "", ratios, "x", resolution)]


def _bounds(name: str, suffix: str, values: list[float], unit: str, resolution: float) -> list[Measurement]:
    interval = median_interval(values)
    if interval is None:
        return []
    low, high = interval[0] / (1 + resolution), interval[1] * (1 + resolution)
    return [Measurement(f"{name}_low{suffix}", low, unit), Measurement(f"{name}_high{suffix}", high, unit)]


def median_interval(values: list[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """An interval that holds the median with at least `confidence`, whatever the distribution; None for too few values.

    From the order statistics and the binomial distribution (Conover, "Practical Nonparametric Statistics", 3rd edition, section
    3.2). A percentile bootstrap of the median tends to this interval with many values, but is too narrow with few: of 7 pairs it
    held the truth in 87 % of cases.
    """
    from scipy.stats import quantile_test  # takes a second to import

    interval = quantile_test(values, p=0.5).confidence_interval(confidence)
    return None if math.isnan(interval.low) else (float(interval.low), float(interval.high))
