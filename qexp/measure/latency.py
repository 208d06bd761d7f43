"""Time of one call in steady state, and speed-ups over fp32 measured in turns with it."""

from __future__ import annotations

import statistics
from typing import Any

from qexp.measure.base import Candidate, Context, Measure
from qexp.measure.cores import watched
from qexp.measure.timing import LEAST_WINDOWS, Rules, Window, bounds
from qexp.metrics import METRICS
from qexp.types import Measurement, UserError

MOVED = 1.5  # times the shortest way of a byte between two cores, and they are not where they were


class Latency(Measure):
    """How times are taken and described is said by `timing.Rules`, and how a byte's way between the cores is measured by cores.py.
    benchmarks/instruments.py measures `resolution`.

    Raises:
        UserError: For less than 2 windows of 1 call.
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
        with watched(context.candidate.threads) as places:
            taken = self.rules.take_turns([*(candidate.window for candidate in candidates), *places])
        found = []
        if places:
            trips = [1e6 * statistics.median(window) for window in taken.pop()]
            found = [METRICS["core_round_trip_ns"].of(statistics.median(trips), samples=tuple(trips))]
            counted = self.counted(trips, context.notes)
            taken = [[windows[turn] for turn in counted] for windows in taken]
        elif self.most_round_trip_ns is not None:
            context.notes["core_round_trip_ns"] = (
                "not measured: it needs two threads, two cores and Linux; every turn counts"
            )
        if not taken[0]:
            return found
        medians = [[statistics.median(window) for window in windows] for windows in taken]
        found += self.describe(taken[0], context.candidate)
        for name, other in (("speedup", context.baseline), ("speedup_vs_best_fp32", context.best_fp32)):
            if other and other.identity != context.candidate.identity:
                found += speedup(
                    name, medians[[s.identity for s in candidates].index(other.identity)], medians[0], self.resolution
                )
        if context.best_fp32:
            context.notes["speedup_vs_best_fp32"] = f"the fastest fp32 engine here was {context.best_fp32.engine.name}"
        return found

    def counted(self, trips: list[float], notes: dict[str, str]) -> list[int]:
        """The turns that count, by the nanoseconds of a byte's way between the cores and back in each; none where they are too few."""
        way = f"a byte's way between the cores and back took {min(trips):.0f} to {max(trips):.0f} ns"
        if max(trips) > MOVED * min(trips):
            notes["core_round_trip_ns"] = f"the cores were moved between turns: {way}"
        if self.most_round_trip_ns is None:
            return list(range(len(trips)))
        counted = [turn for turn, trip in enumerate(trips) if trip <= self.most_round_trip_ns]
        if len(counted) >= LEAST_WINDOWS:
            return counted
        asked = f"most_round_trip_ns={self.most_round_trip_ns:g} held in {len(counted)} of {len(trips)} turns, {LEAST_WINDOWS} are needed"
        notes["latency_ms"] = f"{asked}: {way}; take more windows in a longer budget_s, or a longer way"
        return []

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
