"""How a time is taken and described, with NumPy alone: in measuring children, and on devices, to which qexp.deploy copies this file."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

LEAST_WINDOWS = 7  # the fewest values whose median has a 95 % interval narrower than all of them
STATUS = Path("/proc/self/status")

Forward = Callable[[np.ndarray], Any]  # x[B,C,H,W] float32 -> logits[B,K]
Window = Callable[[int, float], list[float]]  # the least calls and seconds -> milliseconds of single calls


@dataclass(frozen=True)
class Rules:
    """windows: turns of each candidate, fewer (but at least LEAST_WINDOWS) where all would take more than budget_s seconds;
    calls, window_s: the least calls and seconds of one window; warmup_calls, warmup_s: the least of what is not counted before;
    resolution: by how much the same network differs between two processes, whatever their windows say (memory is laid out
    differently in each); intervals are widened by this share.
    """

    windows: int
    calls: int
    window_s: float
    warmup_calls: int
    warmup_s: float
    budget_s: float
    resolution: float = 0.0

    def take_turns(self, candidates: list[Window]) -> list[list[list[float]]]:
        """Milliseconds of single calls, by candidate and window: every candidate's windows alternate with the others'."""
        for candidate in candidates:
            self.warm_up(candidate)
        taken: list[list[list[float]]] = [[] for _ in candidates]
        began = time.monotonic()
        for turn in range(self.windows):
            if turn >= LEAST_WINDOWS and time.monotonic() - began > self.budget_s:
                break
            for candidate, windows in zip(candidates, taken, strict=True):
                windows.append(candidate(self.calls, self.window_s))
        return taken

    def warm_up(self, candidate: Window) -> None:
        """Call until two windows in a row agree within 5 %, for ten times the least warm-up at most."""
        before = float("inf")
        for _ in range(10):
            now = statistics.median(candidate(self.warmup_calls, self.warmup_s))
            if abs(now - before) <= 0.05 * now:
                return
            before = now

    def describe(self, windows: list[list[float]], batch: int) -> dict[str, tuple[float, str]]:
        """Value and unit by name: milliseconds per call of `batch` images, images per second, and the spread: interquartile range
        over the median (noisy above 0.1)."""
        samples = np.concatenate(windows)
        medians = [statistics.median(window) for window in windows]
        latency = statistics.median(medians)
        p25, p50, p75, p90, p99 = np.percentile(samples, (25, 50, 75, 90, 99))
        values = {
            "latency_ms": latency, "latency_ms_per_image": latency / batch, "latency_mean_ms": samples.mean(), "latency_p50_ms": p50,
            "latency_p90_ms": p90, "latency_p99_ms": p99, "latency_std_ms": samples.std(ddof=1),
        }  # fmt: skip
        values |= {f"latency_{end}_ms": bound for end, bound in bounds(medians, self.resolution).items()}
        described = {name: (float(value), "ms") for name, value in values.items()}
        described["throughput_ips"] = 1000 * batch / latency, "images/s"
        described["latency_spread"] = float((p75 - p25) / latency), "fraction"
        return described


def start(load: Callable[[], Forward], x: np.ndarray) -> tuple[Forward, dict[str, float | None]]:
    """A network loaded, called once and a few times more: it, milliseconds of the first two, and the memory peak above what was there
    before, in MB (None where the system cannot tell)."""
    before = _reset_peak()
    load_ms, forward = _timed(load)
    first_call_ms, _ = _timed(lambda: forward(x))
    for _ in range(3):  # some engines take their buffers at the second call
        forward(x)
    memory_mb = None if before is None else (_status("VmHWM") - before) / 1e6
    return forward, {"load_ms": load_ms, "first_call_ms": first_call_ms, "memory_mb": memory_mb}


def window(forward: Forward, x: np.ndarray, calls: int, seconds: float) -> list[float]:
    """Milliseconds of at least `calls` calls that together take at least `seconds`."""
    samples: list[float] = []
    began = time.perf_counter()
    while len(samples) < calls or time.perf_counter() - began < seconds:
        start = time.perf_counter_ns()
        forward(x)
        samples.append((time.perf_counter_ns() - start) / 1e6)
    return samples


def bounds(values: list[float], resolution: float = 0.0) -> dict[str, float]:
    """`low` and `high` of the median's 95 % interval, widened by the share `resolution`; nothing for too few values."""
    interval = median_interval(values)
    return {"low": interval[0] / (1 + resolution), "high": interval[1] * (1 + resolution)} if interval else {}


def median_interval(values: list[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """An interval that holds the median with at least `confidence`, whatever the distribution; None for too few values.

    From the order statistics and the binomial distribution (Conover, "Practical Nonparametric Statistics", 3rd edition, section
    3.2). A percentile bootstrap of the median tends to this interval with many values, but is too narrow with few: of 7 pairs it
    held the truth in 87 % of cases.
    """
    count, least, below = len(values), 0, 0.0
    while (
        below + math.comb(count, least) / 2**count < (1 - confidence) / 2
    ):  # the chance that at most `least` lie below the median
        below += math.comb(count, least) / 2**count
        least += 1
    ordered = sorted(values)
    return (float(ordered[least - 1]), float(ordered[count - least])) if least else None


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter_ns()
    result = function()
    return (time.perf_counter_ns() - began) / 1e6, result


def _status(key: str) -> int:
    """A memory figure of this process in bytes (Linux)."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def _reset_peak() -> int | None:
    """Set the high-water mark back to what is resident now, and return that; None where the system has no such mark."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return None
