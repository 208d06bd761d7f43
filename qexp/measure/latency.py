"""Measures the time of one call in steady state, and the speed-up over fp32, which takes turns with it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from qexp.measure.base import Context, Measure
from qexp.measure.candidate import Candidate
from qexp.measure.cores import Cores, watched
from qexp.measure.timing import Rules, Taken, Watched, Window, bounds
from qexp.metrics import METRICS
from qexp.progress import doing
from qexp.records import Measurement
from qexp.types import UserError


class Latency(Measure):
    """Measures the latency of one call, and its ratio to that of fp32 in the same turns.

    `timing.Rules` defines how times are taken and described, disturbance.py and cores.py which turns count. The option
    `resolution` is measured by benchmarks/instruments.py.

    Raises:
        UserError: Fewer than 2 windows of 1 call are asked for, or `watch` is neither true nor false.
    """

    def __init__(
        self, windows: int, calls: int, window_s: float, warmup_calls: int, warmup_s: float, budget_s: float,
        resolution: float, most_round_trip_ns: float | None, watch: bool,
    ):  # fmt: skip
        if windows < 2 or calls < 1 or warmup_calls < 1:
            raise UserError(
                f"windows={windows}, calls={calls}, warmup_calls={warmup_calls}: "
                "at least 2 windows of 1 call are needed."
            )
        self.rules = Rules(windows, calls, window_s, warmup_calls, warmup_s, budget_s, resolution)
        if not isinstance(watch, bool):
            raise UserError(f"watch={watch!r}: give true or false (or the variable QEXP_WATCH).")
        self.resolution, self.most_round_trip_ns, self.watch = resolution, most_round_trip_ns, watch

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
        about = min(self.rules.budget_s, self.rules.windows * self.rules.window_s * len(candidates))
        timing = doing(f"Timing {len(candidates)} networks in turns, for about {about:.0f} s", still=True)
        # Only on this machine is it known how far apart the cores are.
        threads, most_ns = context.candidate.threads, self.most_round_trip_ns
        judging = watched(threads, most_ns) if context.candidate.device.here else nullcontext(Cores(None, most_ns))
        with timing, judging as cores:
            watch = watch_of(candidates, cores.processes) if self.watch else None
            taken = self.rules.take_turns([*(candidate.window for candidate in candidates), *cores.windows], watch)
        kept, found = cores.judge(taken.windows, context.notes)
        if not kept[0]:
            return found
        medians = [[statistics.median(window) for window in windows] for windows in kept]
        found += self.describe(kept[0], context.candidate)
        for name, other in (("speedup", context.baseline), ("speedup_vs_best_fp32", context.best_fp32)):
            if other and other.identity != context.candidate.identity:
                place = [candidate.identity for candidate in candidates].index(other.identity)
                found += speedup(name, medians[place], medians[0], self.resolution)
        if context.best_fp32:
            where = "here" if context.candidate.device.here else f"on {context.candidate.device.name}"
            context.notes["speedup_vs_best_fp32"] = (
                f"the fastest fp32 engine {where} was {context.best_fp32.engine.name}"
            )
        if taken.trusted:
            return found
        turns = len(taken.windows[0])
        context.notes["latency_ms"] = f"{taken.disturbed} of {turns} turns were disturbed: {taken.reason}"
        return [replace(measurement, kind="disturbed") for measurement in found]

    def take_turns(self, candidates: list[Candidate]) -> Taken:
        windows: list[Window] = [candidate.window for candidate in candidates]
        return self.rules.take_turns(windows, watch_of(candidates) if self.watch else None)

    def describe(self, windows: list[list[float]], candidate: Candidate) -> list[Measurement]:
        """Describe the times of one candidate.

        Args:
            windows: Milliseconds of single calls, by window.
            candidate: What was timed.

        Returns:
            Milliseconds per call with their spread, images per second, and how long loading and the first call took.
        """
        samples = {"latency_ms": tuple(float(sample) for window in windows for sample in window)}
        described = self.rules.describe(windows, candidate.batch)
        return [
            *(METRICS[name].of(value, samples=samples.get(name, ())) for name, (value, _) in described.items()),
            *(METRICS[name].of(candidate.start()[name]) for name in ("load_ms", "first_call_ms")),
        ]


def watch_of(candidates: list[Candidate], others: Sequence[int] = ()) -> Watched:
    """Watch the children of candidates, and other processes that take part in timing them."""
    return candidates[0].device.watch(
        lambda: [*(candidate.process for candidate in candidates), *others],
        max(candidate.threads for candidate in candidates),
    )


def speedup(name: str, baseline: list[float], candidate: list[float], resolution: float = 0.0) -> list[Measurement]:
    """Compare the times of two candidates that took turns.

    Windows with the same number ran right after each other. Taking the ratio of each such pair cancels a drift of the
    machine.

    Args:
        name: Metric of the speed-up. The ends of its interval are the metrics `NAME_low` and `NAME_high`.
        baseline: Medians of the baseline's windows.
        candidate: Medians of the candidate's windows.
        resolution: Share by which the 95 % interval is widened.

    Returns:
        The median of the ratios, and its 95 % interval if there are enough windows.
    """
    ratios = [b / c for b, c in zip(baseline, candidate, strict=True)]
    interval = [METRICS[f"{name}_{end}"].of(value) for end, value in bounds(ratios, resolution).items()]
    return [METRICS[name].of(statistics.median(ratios), samples=tuple(ratios)), *interval]
