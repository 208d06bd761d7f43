"""Whether the instruments can be trusted: A against A, and the same paired measurement repeated.

    uv run python benchmarks/instruments.py model=vgg19 data=folder data.root=FOLDER [+repetitions=20] [+repeats=5]

Takes the options of compress.py. A against A: the same int8 artifact on the same engine in two children, `repetitions` times; a
95 % interval of their speed-up should contain 1 in at least 17 of 20. Repeated: fp32 on eager torch against that artifact, `repeats`
times with fresh children; how far the speed-ups and the medians themselves spread.
"""

from __future__ import annotations

import statistics
import sys

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


def main(options: list[str]) -> None:
    config: DictConfig = composed(options)
    repetitions, repeats = config.get("repetitions", 20), config.get("repeats", 5)
    subjects = prepare(config)
    latency: Latency = instantiate(config.measure.latency)
    eager = subjects.of(instantiate(config.baseline.method), instantiate(config.baseline.engine))
    chosen = ours(config, subjects)
    chosen.close()
    twin = Subject(chosen.artifact, chosen.engine, chosen.batch, chosen.threads, chosen.limits)
    title = f"{config.model.id} {chosen.artifact.label} on {chosen.engine.name}, batch {config.batch_size}, {config.threads} threads"

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
