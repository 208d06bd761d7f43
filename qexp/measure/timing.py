"""Takes times and describes them, in measuring children and on devices.

The module needs nothing but NumPy, because qexp.deploy copies this file to devices.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

LEAST_WINDOWS = 7  # the fewest values for which the 95 % interval of the median is narrower than their range
STATUS = Path("/proc/self/status")

Forward = Callable[[np.ndarray], Any]  # x[B,C,H,W] float32 -> logits[B,K]
Window = Callable[[int, float], list[float]]  # least calls and seconds -> milliseconds of single calls


class Watched(Protocol):
    """Tells whether something else used the cores since `begin`, such as qexp.measure.disturbance.Watch.

    As long as it is too early to tell, `disturbed` gives None. `reason` says what disturbed them, in words.
    """

    @property
    def reason(self) -> str: ...

    def begin(self) -> None: ...

    def disturbed(self) -> bool | None: ...


@dataclass(frozen=True)
class Taken:
    """What candidates took in turns.

    Attributes:
        windows: Milliseconds of single calls, by candidate and turn.
        disturbed: Number of turns that something else disturbed. They are among `windows` only if too few others are.
        trusted: Whether enough turns were undisturbed, so that `windows` are these alone.
        reason: What disturbed those that were, in words.
    """

    windows: list[list[list[float]]]
    disturbed: int = 0
    trusted: bool = True
    reason: str = ""


@dataclass(frozen=True)
class Rules:
    """The rules by which times are taken and described.

    Attributes:
        windows: Windows of each candidate that nothing disturbed.
        calls: Least number of calls in a window.
        window_s: Least seconds of a window.
        warmup_calls: Least number of calls in a window of the warm-up, which is not counted.
        warmup_s: Least seconds of a window of the warm-up.
        budget_s: Seconds after which fewer windows are enough, though not fewer than LEAST_WINDOWS. Until then, turns
            that were disturbed are taken again.
        resolution: Share by which one network differs between two processes, because memory is laid out differently in
            each. Windows within one process do not show this, so intervals are widened by it.
    """

    windows: int
    calls: int
    window_s: float
    warmup_calls: int
    warmup_s: float
    budget_s: float
    resolution: float = 0.0

    def take_turns(self, candidates: list[Window], watch: Watched | None = None) -> Taken:
        """Time candidates in turns, window by window.

        Args:
            candidates: What is timed.
            watch: Tells which turns were disturbed. None: no turn was.
        """
        for candidate in candidates:
            self.warm_up(candidate)
        good: list[list[list[float]]] = []
        bad: list[list[list[float]]] = []
        began = time.monotonic()
        while len(good) < self.windows:
            if len(good) + len(bad) >= LEAST_WINDOWS and time.monotonic() - began > self.budget_s:
                break
            turns, disturbed = self._turns(candidates, watch)
            (bad if disturbed else good).extend(turns)
        trusted = len(good) >= min(LEAST_WINDOWS, self.windows)
        kept = good if trusted else good + bad
        reason = watch.reason if watch and bad else ""
        return Taken([list(windows) for windows in zip(*kept, strict=True)], len(bad), trusted, reason)

    def _turns(self, candidates: list[Window], watch: Watched | None) -> tuple[list[list[list[float]]], bool]:
        """As many turns as it takes to tell whether they were disturbed, and whether they were."""
        if watch:
            watch.begin()
        turns: list[list[list[float]]] = []
        while True:
            turns.append([candidate(self.calls, self.window_s) for candidate in candidates])
            disturbed = watch.disturbed() if watch else False
            if disturbed is not None:
                return turns, disturbed

    def warm_up(self, candidate: Window) -> None:
        """Call until two windows in a row agree within 5 %, for at most ten windows."""
        before = float("inf")
        for _ in range(10):
            now = statistics.median(candidate(self.warmup_calls, self.warmup_s))
            if abs(now - before) <= 0.05 * now:
                return
            before = now

    def describe(self, windows: list[list[float]], batch: int) -> dict[str, tuple[float, str]]:
        """Describe the times of one candidate.

        Args:
            windows: Milliseconds of single calls, by window.
            batch: Images per call.

        Returns:
            Value and unit by metric: milliseconds per call, images per second, and the spread, which is the
            interquartile range divided by the latency (above 0.1, the times are noisy).
        """
        samples = np.concatenate(windows)
        medians = [statistics.median(window) for window in windows]
        latency = statistics.median(medians)
        p25, p50, p75, p90, p99 = np.percentile(samples, (25, 50, 75, 90, 99))
        values = {
            "latency_ms": latency, "latency_ms_per_image": latency / batch, "latency_mean_ms": samples.mean(),
            "latency_p50_ms": p50, "latency_p90_ms": p90, "latency_p99_ms": p99,
            "latency_std_ms": samples.std(ddof=1),
        }  # fmt: skip
        values |= {f"latency_{end}_ms": bound for end, bound in bounds(medians, self.resolution).items()}
        described = {name: (float(value), "ms") for name, value in values.items()}
        described["throughput_ips"] = 1000 * batch / latency, "images/s"
        described["latency_spread"] = float((p75 - p25) / latency), "fraction"
        return described


def start(load: Callable[[], Forward], x: np.ndarray) -> tuple[Forward, dict[str, float | None]]:
    """Load a network and call it a few times.

    Args:
        load: Loads the network.
        x: Input x[B,C,H,W] float32.

    Returns:
        The network, and `load_ms` and `first_call_ms` in milliseconds, and `memory_mb`, the peak of resident memory
        above that before loading (None if the system cannot tell).
    """
    before = _reset_peak()
    load_ms, forward = _timed(load)
    first_call_ms, _ = _timed(lambda: forward(x))
    for _ in range(3):  # some engines allocate their buffers at the second call
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
    """`low` and `high` of the median's 95 % interval, widened by the share `resolution`. Empty for too few values."""
    interval = median_interval(values)
    return {"low": interval[0] / (1 + resolution), "high": interval[1] * (1 + resolution)} if interval else {}


def median_interval(values: list[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """An interval that holds the median with a probability of at least `confidence`, whatever the distribution.

    It is made of order statistics by the binomial distribution (Conover, "Practical Nonparametric Statistics", 3rd
    edition, section 3.2). A percentile bootstrap of the median tends to this interval for many values, but is too
    narrow for few: with 7 pairs, it held the true median in only 87 % of cases.

    Returns:
        The interval, or None for too few values.
    """
    count, least, below = len(values), 0, 0.0
    # `below` is the probability that fewer than `least` values lie below the median.
    while below + math.comb(count, least) / 2**count < (1 - confidence) / 2:
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
    """Set the high-water mark of memory to what is resident now, and return that; None if there is no such mark."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return None
