"""Time of one call in steady state, and the speed-up over the fp32 baseline measured in turns with it."""

from __future__ import annotations

import statistics

import numpy as np

from qexp.measure.base import Bench, Measure, Subject
from qexp.types import Measurement, UserError


class Latency(Measure):
    """windows: turns taken with the baseline; calls, window_s: the least calls and seconds of one window;
    warmup_calls, warmup_s: the least of what is not counted before. Errors: UserError for less than 2 windows of 1 call."""

    def __init__(self, windows: int, calls: int, window_s: float, warmup_calls: int, warmup_s: float):
        if windows < 2 or calls < 1 or warmup_calls < 1:
            raise UserError(f"windows={windows}, calls={calls}, warmup_calls={warmup_calls}: at least 2 windows of 1 call are needed.")
        self.windows, self.calls, self.window_s = windows, calls, window_s
        self.warmup_calls, self.warmup_s = warmup_calls, warmup_s

    def measure(self, bench: Bench) -> list[Measurement]:
        subject = bench.subject
        if subject.artifact.simulated:
            return []
        subjects = [subject] if bench.baseline is None or bench.is_baseline else [subject, bench.baseline]
        windows = self.take_turns(subjects)
        found = self.describe(windows[0], subject)
        if len(subjects) > 1:
            found += speedup([statistics.median(w) for w in windows[1]], [statistics.median(w) for w in windows[0]])
        return found

    def take_turns(self, subjects: list[Subject]) -> list[list[list[float]]]:
        """Milliseconds of single calls, by subject and window: every subject's windows alternate with the others'."""
        for subject in subjects:
            self.warm_up(subject)
        windows: list[list[list[float]]] = [[] for _ in subjects]
        for _ in range(self.windows):
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
        latency = statistics.median(statistics.median(w) for w in windows)
        p25, p50, p75, p90, p99 = np.percentile(samples, (25, 50, 75, 90, 99))
        values = {
            "latency_ms": latency, "latency_ms_per_image": latency / subject.batch, "latency_mean_ms": samples.mean(),
            "latency_p50_ms": p50, "latency_p90_ms": p90, "latency_p99_ms": p99, "latency_std_ms": samples.std(ddof=1),
            "load_ms": subject.start["load_ms"], "first_call_ms": subject.start["first_call_ms"],
        }  # fmt: skip
        kept = {"latency_ms": tuple(float(s) for s in samples)}
        return [
            *(Measurement(name, float(value), "ms", samples=kept.get(name, ())) for name, value in values.items()),
            Measurement("throughput_ips", 1000 * subject.batch / latency, "images/s"),
            Measurement("latency_spread", float((p75 - p25) / latency), "fraction"),
        ]


def speedup(baseline: list[float], candidate: list[float]) -> list[Measurement]:
    """Ratio of two subjects' window medians taken in turns, with a 95 % percentile bootstrap interval.

    Window i of both ran side by side, so ratios are taken pair by pair, which cancels a drift of the machine (Efron and
    Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13). Of few pairs the interval is too narrow: it holds the
    truth in 87 % of cases with 7 pairs, in 95 % with 20.
    """
    ratios = np.array(baseline) / np.array(candidate)
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.percentile(np.median(draws, axis=1), (2.5, 97.5))
    return [
        Measurement("speedup", float(np.median(ratios)), "x", samples=tuple(ratios.tolist())),
        Measurement("speedup_low", float(low), "x"),
        Measurement("speedup_high", float(high), "x"),
    ]
