"""Whether the instruments can be trusted: A against A, the same paired measurement repeated, and how steady the machine is.

    uv run python benchmarks/instruments.py model=vgg19 data=folder data.root=FOLDER [+repetitions=20] [+repeats=5] [+turns=20]

Takes the options of compress.py. A against A: the same int8 artifact on the same engine in two children, `repetitions` times; a
95 % interval of their speed-up should contain 1 in at least 17 of 20. Repeated: fp32 on eager torch against that artifact, `repeats`
times with fresh children; how far the speed-ups and the medians themselves spread. The machine: two children of each of the two take
`turns` in turns; children of one network that change together, and not with those of the other, say that the machine changed, and
that no pairing could have made up for it.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import replace

from against_others import ours
from common import composed, machine
from hydra.utils import instantiate
from omegaconf import DictConfig

from qexp.jobs.subjects import prepare
from qexp.measure.base import Subject, alone_on_host, ready
from qexp.measure.latency import Latency, speedup


def paired(latency: Latency, baseline: Subject, candidate: Subject) -> tuple[list[float], list[float], list[float]]:
    """Window medians of both in ms, and (speed-up, low, high), from fresh children."""
    with alone_on_host():
        try:
            ready([baseline, candidate])
            taken = [[statistics.median(window) for window in windows] for windows in latency.take_turns([baseline, candidate])]
        finally:
            baseline.close()
            candidate.close()
    return taken[0], taken[1], [m.value for m in speedup("speedup", taken[0], taken[1], latency.resolution)]


def spread(values: list[float]) -> float:
    """(largest - smallest) / median."""
    return (max(values) - min(values)) / statistics.median(values)


def steadiness(latency: Latency, pairs: list[tuple[Subject, Subject]], turns: int) -> None:
    """Print how far two children of one network differ in a turn, and how far each network's time moves between turns."""
    subjects = [subject for pair in pairs for subject in pair]
    rules = replace(latency.rules, windows=turns, budget_s=float("inf"))
    with alone_on_host():
        try:
            ready(subjects)
            taken = [[statistics.median(w) for w in windows] for windows in rules.take_turns([subject.window for subject in subjects])]
        finally:
            for subject in subjects:
                subject.close()
    for place, (first, _) in enumerate(pairs):
        one, other = taken[2 * place : 2 * place + 2]
        apart = [spread([a, b]) for a, b in zip(one, other, strict=True)]
        means = [(a + b) / 2 for a, b in zip(one, other, strict=True)]
        print(
            f"  {first.artifact.label} on {first.engine.name}: {min(means):.3f} to {max(means):.3f} ms in {turns} turns, spread "
            f"{spread(means):.1%}; its two children differ by {statistics.median(apart):.1%} (median of turns) and move together: "
            f"correlation {statistics.correlation(one, other):.2f}"
        )


def main(options: list[str]) -> None:
    config: DictConfig = composed(options)
    repetitions, repeats, turns = config.get("repetitions", 20), config.get("repeats", 5), config.get("turns", 20)
    subjects = prepare(config)
    latency: Latency = instantiate(config.measure.latency)
    eager = subjects.of(instantiate(config.baseline.method), instantiate(config.baseline.engine))
    chosen = ours(config, subjects)
    chosen.close()
    twin, eager_twin = (Subject(s.artifact, s.engine, s.batch, s.threads, s.limits) for s in (chosen, eager))
    title = f"{config.model.id} {chosen.artifact.label} on {chosen.engine.name}, batch {config.batch_size}, {config.threads} threads"

    if turns >= 2:
        print(f"\nThe machine: {title}")
        steadiness(latency, [(eager, eager_twin), (chosen, twin)], turns)

    print(f"\nA against A: {title}")
    held = 0
    for _ in range(repetitions):
        *_, (ratio, low, high) = paired(latency, chosen, twin)
        held += low <= 1 <= high
        print(f"  {ratio:.3f}  ({low:.3f} to {high:.3f})  {'' if low <= 1 <= high else 'without 1'}", flush=True)
    print(f"{held} of {repetitions} intervals contain 1")

    print(f"\nRepeated: {title} against fp32 on eager")
    found = [paired(latency, eager, chosen) for _ in range(repeats)]
    for slow, fast, (ratio, low, high) in found:
        print(f"  {statistics.median(slow):.3f} ms / {statistics.median(fast):.3f} ms = {ratio:.2f}x ({low:.2f} to {high:.2f})")
    if not found:
        return
    ratios, slow, fast = [f[2][0] for f in found], [statistics.median(f[0]) for f in found], [statistics.median(f[1]) for f in found]
    print(f"spread (largest - smallest over median): speed-up {spread(ratios):.1%}, medians {spread(slow):.1%} and {spread(fast):.1%}")
    print(f"\n{machine()}")


if __name__ == "__main__":
    main(sys.argv[1:])
