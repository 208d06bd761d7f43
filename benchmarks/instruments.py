r"""Checks in five ways whether the measuring instruments can be trusted.

    uv run python benchmarks/instruments.py model=vgg19 data=folder data.root=FOLDER \
        [+repetitions=20] [+repeats=5] [+turns=20] [+heats=20]

It takes the options of compress.py.

The clock: calls that compute for 1 ms, by the processor's own clock, should read 1 ms within 5 % in the median.

The machine: two children of fp32 on eager PyTorch and two of an int8 artifact take turns, `turns` times. If the
children of one network change together, and not with those of the other, the machine has changed.

A against A: the int8 artifact is compared with itself, on the same engine in two children, `repetitions` times. The
95 % interval of the speed-up should contain 1 in at least 17 of 20.

The table: ten rows of the int8 artifact, each with children of its own, are timed in one heat as at the end of a
sweep, `heats` times. Not more than 5 % of all pairs of rows should be told apart.

Repeated: fp32 on eager PyTorch is compared with that artifact, `repeats` times with fresh children. This shows how far
the speed-ups and the medians themselves spread, and how far they do while the cores are in one place. The host of a
virtual machine moves its cores, which changes networks on two threads unequally (qexp/measure/cores.py), so that no
pairing makes up for it. To see more of both places, give measure.latency.windows=180 measure.latency.budget_s=60.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
from against_others import ours
from common import composed, machine
from hydra.utils import instantiate
from omegaconf import DictConfig

from qexp.jobs.artifact_factory import prepare
from qexp.jobs.heat import Heat, timed
from qexp.measure.base import ready
from qexp.measure.candidate import Candidate
from qexp.measure.cores import MOVED, watched
from qexp.measure.host_lock import alone_on_host
from qexp.measure.latency import Latency, speedup
from qexp.measure.timing import LEAST_WINDOWS, window

IDENTICAL = ("artifact", "engine", "batch", "threads", "limits")  # attributes that make one candidate like another


@dataclass(frozen=True)
class Turns:
    """The medians of what took turns, in ms and by turn.

    Attributes:
        fp32: Medians of fp32.
        int8: Medians of int8.
        trip: Medians of a byte's way between the cores and back. Empty on one thread.
    """

    fp32: list[float]
    int8: list[float]
    trip: list[float] = field(default_factory=list)

    def speedup(self, resolution: float) -> list[float]:
        """The speed-up, and the bounds of its 95 % interval."""
        return [m.value for m in speedup("speedup", self.fp32, self.int8, resolution)]

    def where(self, least: float, most: float) -> Turns:
        """The turns in which the byte's way took from `least` to below `most` ms."""
        chosen = [turn for turn in zip(self.fp32, self.int8, self.trip, strict=True) if least <= turn[2] < most]
        return Turns(*([turn[column] for turn in chosen] for column in range(3)))


def paired(latency: Latency, baseline: Candidate, candidate: Candidate) -> Turns:
    """Let two candidates take turns in fresh children."""
    with alone_on_host(), watched(candidate.threads, None) as cores:
        try:
            ready([baseline, candidate])
            taken = latency.rules.take_turns([baseline.window, candidate.window, *cores.windows]).windows
        finally:
            baseline.close()
            candidate.close()
    return Turns(*([statistics.median(window) for window in windows] for windows in taken))


def spinning(x: np.ndarray) -> None:
    """Compute for 1 ms of this thread's processor time."""
    end = time.thread_time() + 1e-3
    while time.thread_time() < end:
        pass


def spread(values: list[float]) -> float:
    """(largest - smallest) / median."""
    return (max(values) - min(values)) / statistics.median(values)


def steadiness(latency: Latency, pairs: list[tuple[Candidate, Candidate]], turns: int) -> None:
    """Print how far two children of one network differ in a turn, and how far a network's time moves between turns."""
    candidates = [candidate for pair in pairs for candidate in pair]
    rules = replace(latency.rules, windows=turns, budget_s=float("inf"))
    with alone_on_host():
        try:
            ready(candidates)
            taken = [
                [statistics.median(w) for w in windows]
                for windows in rules.take_turns([candidate.window for candidate in candidates]).windows
            ]
        finally:
            for candidate in candidates:
                candidate.close()
    for place, (first, _) in enumerate(pairs):
        one, other = taken[2 * place : 2 * place + 2]
        apart = [spread([a, b]) for a, b in zip(one, other, strict=True)]
        means = [(a + b) / 2 for a, b in zip(one, other, strict=True)]
        print(
            f"  {first.artifact.label} on {first.engine.name}: {min(means):.3f} to {max(means):.3f} ms "
            f"in {turns} turns, spread {spread(means):.1%}; its two children differ by "
            f"{statistics.median(apart):.1%} (median of turns) and move together: "
            f"correlation {statistics.correlation(one, other):.2f}"
        )


def told_apart(chosen: Candidate, heat: Heat) -> int:
    """How many of the 45 pairs of ten rows of one artifact a heat tells apart."""
    rows = {str(i): Candidate(*(getattr(chosen, name) for name in IDENTICAL)) for i in range(10)}
    results = timed(rows, heat)
    if results is None:
        return 0  # it ranks nobody
    return sum(one[2] < other[1] or other[2] < one[1] for one, other in combinations(results.values(), 2))


def repeated(found: list[Turns], resolution: float) -> None:
    """Print the speed-ups and how far they spread, in all turns and in those with the cores in one place.

    The cores count as apart if a byte's way between them and back takes at least MOVED times the shortest one.
    """
    if not found:
        return
    for turns in found:
        ratio, low, high = turns.speedup(resolution)
        way = f", between the cores and back in {1e6 * statistics.median(turns.trip):.0f} ns" if turns.trip else ""
        slow_ms, fast_ms = statistics.median(turns.fp32), statistics.median(turns.int8)
        print(f"  {slow_ms:.3f} ms / {fast_ms:.3f} ms = {ratio:.2f}x ({low:.2f} to {high:.2f}){way}")
    ratios = [turns.speedup(resolution)[0] for turns in found]
    slow, fast = (
        [statistics.median(turn) for turn in turns] for turns in zip(*((t.fp32, t.int8) for t in found), strict=True)
    )
    print(
        f"spread (largest - smallest over median): speed-up {spread(ratios):.1%}, "
        f"medians {spread(slow):.1%} and {spread(fast):.1%}"
    )
    apart = MOVED * min((trip for turns in found for trip in turns.trip), default=0.0)
    for place, least, most in (("near each other", 0.0, apart), ("apart", apart, float("inf"))):
        there = [
            turns
            for turns in (turns.where(least, most) for turns in found if turns.trip)
            if len(turns.trip) >= LEAST_WINDOWS
        ]
        ratios = [turns.speedup(resolution)[0] for turns in there]
        if len(there) > 1:
            print(f"with the cores {place}: {', '.join(f'{r:.2f}x' for r in ratios)}, spread {spread(ratios):.1%}")


def main(options: list[str]) -> None:
    config: DictConfig = composed(options)
    repetitions, repeats, turns, heats = (
        config.get(name, default)
        for name, default in (("repetitions", 20), ("repeats", 5), ("turns", 20), ("heats", 20))
    )
    factory = prepare(config)
    latency: Latency = instantiate(config.measure.latency)
    eager = factory.candidate(instantiate(config.baseline.method), instantiate(config.baseline.engine))
    chosen = ours(config, factory)
    chosen.close()
    twin, eager_twin = (Candidate(s.artifact, s.engine, s.batch, s.threads, s.limits) for s in (chosen, eager))
    title = (
        f"{config.model.id} {chosen.artifact.label} on {chosen.engine.name}, "
        f"batch {config.batch_size}, {config.threads} threads"
    )

    samples = window(spinning, np.empty(0), 500, 0)
    print(
        f"\nThe clock: 1 ms reads {min(samples):.3f} ms at least and {statistics.median(samples):.3f} ms in the median"
    )

    if turns >= 2:
        print(f"\nThe machine: {title}")
        steadiness(latency, [(eager, eager_twin), (chosen, twin)], turns)

    print(f"\nA against A: {title}")
    held = 0
    for _ in range(repetitions):
        ratio, low, high = paired(latency, chosen, twin).speedup(latency.resolution)
        held += low <= 1 <= high
        print(f"  {ratio:.3f}  ({low:.3f} to {high:.3f})  {'' if low <= 1 <= high else 'without 1'}", flush=True)
    print(f"{held} of {repetitions} intervals contain 1")

    if heats:
        print(f"\nThe table: ten rows of {title}")
        heat = Heat(instantiate(config.heat.turns), config.heat.rows, config.heat.resolution)
        told = [told_apart(chosen, heat) for _ in range(heats)]
        print(f"{sum(told)} of {45 * heats} pairs were told apart ({sum(told) / 45 / heats:.1%}); by heat: {told}")

    print(f"\nRepeated: {title} against fp32 on eager")
    repeated([paired(latency, eager, chosen) for _ in range(repeats)], latency.resolution)
    print(f"\n{machine()}")


if __name__ == "__main__":
    main(sys.argv[1:])
