"""Time of one call in steady state, and speed-ups over fp32 measured in turns with it."""

from __future__ import annotations

import statistics
from typing import Any

from qexp.measure.base import Context, Measure
from qexp.measure.candidate import Candidate
from qexp.measure.cores import watched
from qexp.measure.timing import Rules, Window, bounds
from qexp.metrics import METRICS
from qexp.types import Measurement, UserError


class Latency(Measure):
    """Latency of one call, and its ratio to that of fp32 in the same turns.

    `timing.Rules` says how times are taken and described, and cores.py which turns count. benchmarks/instruments.py
    measures `resolution`.

    Raises:
        UserError: Fewer than 2 windows of 1 call are asked for.
    """

    def __init__(
        self, windows: int, calls: int, window_s: float, warmup_calls: int, warmup_s: float, budget_s: float, resolution: float,
        most_round_trip_ns: float | None,
    ):  # fmt: skip
        if windows < 2 or calls < 1 or warmup_calls < 1:
            raise UserError(
                f"windows={windows}, calls={calls}, warmup_calls={warmup_calls}: at least 2 windows of 1 call are needed."
            )
        self.rules = Rules(windows, calls, window_s, warmup_calls, warmup_s, budget_s, resolution)
        self.resolution, self.most_round_trip_ns = resolution, most_round_trip_ns

    @property
    def options(self) -> dict[str, Any]:
        return vars(self)

    def measure(self, context: Context) -> list[Measurement]:
        if context.candidate.artifact.simulated:
            context.notes["latency_ms"] = (
                "no kernel computes in this format: its accuracy is simulated, a time would mean nothing"
            )
            return []
        candidates = context.candidates
        with watched(context.candidate.threads, self.most_round_trip_ns) as cores:
            taken = self.rules.take_turns([*(candidate.window for candidate in candidates), *cores.windows])
        taken, found = cores.judge(taken, context.notes)
        if not taken[0]:
            return found
        medians = [[statistics.median(window) for window in windows] for windows in taken]
        found += self.describe(taken[0], context.candidate)
        for name, other in (("speedup", context.baseline), ("speedup_vs_best_fp32", context.best_fp32)):
            if other and other.identity != context.candidate.identity:
                place = [candidate.identity for candidate in candidates].index(other.identity)
                found += speedup(name, medians[place], medians[0], self.resolution)
        if context.best_fp32:
            context.notes["speedup_vs_best_fp32"] = f"the fastest fp32 engine here was {context.best_fp32.engine.name}"
        return found

    def take_turns(self, candidates: list[Candidate]) -> list[list[list[float]]]:
        """Milliseconds of single calls, by candidate and window, taken in turns."""
        windows: list[Window] = [candidate.window for candidate in candidates]
        return self.rules.take_turns(windows)

    def describe(self, windows: list[list[float]], candidate: Candidate) -> list[Measurement]:
        """Milliseconds per call with their spread, images per second, and how long loading and the first call took."""
        samples = {"latency_ms": tuple(float(sample) for window in windows for sample in window)}
        described = self.rules.describe(windows, candidate.batch)
        return [
            *(METRICS[name].of(value, samples=samples.get(name, ())) for name, (value, _) in described.items()),
            *(METRICS[name].of(candidate.start()[name]) for name in ("load_ms", "first_call_ms")),
        ]


def speedup(name: str, baseline: list[float], candidate: list[float], resolution: float = 0.0) -> list[Measurement]:
    """Ratio of two candidates' window medians taken in turns, with its 95 % interval, widened by `resolution`.

    Window i of both ran side by side, so ratios are taken pair by pair, which cancels a drift of the machine.
    """
    ratios = [b / c for b, c in zip(baseline, candidate, strict=True)]
    interval = [METRICS[f"{name}_{end}"].of(value) for end, value in bounds(ratios, resolution).items()]
    return [METRICS[name].of(statistics.median(ratios), samples=tuple(ratios)), *interval]
