"""Made-up networks, for which it is known what every trial of a search would give."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qexp.records import Record
from qexp.within_limits.funnel import funnel
from qexp.within_limits.limits import Limits
from qexp.within_limits.seen import Result, Seen, Trial
from qexp.within_limits.training import Learner, first_trained
from qexp.within_limits.untrained import floating, integers, recovery
from tests.report.support import record

ENGINES = ("quick", "middling", "slow")
FREE: dict[str, Any] = {
    "drop": 1.0, "latency_ms": None, "size_mb": None, "memory_mb": None, "macs_m": None, "bits": [32, 16, 8],
    "engines": None, "methods": ["none", "half", "static", "reconstruct", "mixed", "qat", "prune_channels"],
    "training": True, "minutes": 1000, "sure": False, "minimise": ["latency_ms"],
}  # fmt: skip
World = Callable[[Trial], Record]


def limits(**changes: Any) -> Limits:
    return Limits(**{**FREE, **changes})


@dataclass(frozen=True)
class Numbers:
    """A world of numbers: how fast engines are, what rounding and pruning cost, and how training heals."""

    speed: dict[str, float]
    rounding: dict[str, float]
    pruning: float
    healing: float
    seconds: float = 10.0

    def __call__(self, trial: Trial) -> Record:
        words = dict(word.split("=", 1) for word in trial.words)
        method, bits = words["method"], float(words.get("bits", 8))
        ratio = next((float(value) for name, value in words.items() if name.endswith("ratio")), 1.0)
        heal = max(trial.epochs, 1) ** -self.healing
        lost = 0.0 if bits > 8 else self.rounding[trial.engine] * 2 ** (8 - bits)
        lost *= {"reconstruct": 0.5, "qat": 0.4 * heal}.get(method, 1.0)
        latency, size = self.speed[trial.engine] * bits / 8 * (0.2 + 0.8 / ratio), 2.0 * bits / 8 / ratio
        if accept := words.get("method.accept_points"):
            lost, latency = min(lost, float(accept)), latency * (1.5 if lost > float(accept) else 1)
        lost += self.pruning * (ratio - 1) * heal
        values = {"val_top1_drop": lost / 100, "val_top1": 0.9 - lost / 100, "latency_ms": latency, "size_mb": size,
                  "macs_m": 40 / ratio}  # fmt: skip
        made = record(trial.name, **values)
        return replace(made, seconds=self.seconds * max(1, trial.epochs))


def some(seed: int) -> Numbers:
    rng = np.random.default_rng(seed)
    return Numbers(
        {engine: float(factor * rng.uniform(0.8, 1.6)) for engine, factor in zip(ENGINES, (1, 1.5, 4), strict=True)},
        {engine: float(rng.uniform(0.0, 2.0)) for engine in ENGINES}, float(rng.uniform(0.5, 6)),
        float(rng.uniform(0.2, 0.8)),
    )  # fmt: skip


def searched(world: World, asked: Limits, chosen: Callable[[Seen], None] = lambda seen: None) -> Seen:
    """Run a whole search in a world, as the driver would, one trial at a time."""
    seen, spent = Seen(asked, ENGINES, left=60 * asked.minutes), 0.0
    trained = set()  # another engine runs what was trained before
    for trials in funnel(seen):
        for trial in trials:
            if seen.left <= 0:
                continue
            made = world(trial)
            if trial.words[:-1] in trained:
                made = replace(made, seconds=made.seconds / max(1, trial.epochs))
            trained.add(trial.words[:-1])
            spent += made.seconds
            seen.left = 60 * asked.minutes - spent
            seen.results.append(Result(trial, made, at=spent))
        chosen(seen)
    return seen


def exhaustive(world: World, asked: Limits) -> Seen:
    """Everything that the search could have tried, on all engines and with all numbers of epochs."""
    seen = Seen(asked, ENGINES)
    for trial in itertools.chain(floating(seen), integers(seen)):
        seen.results.append(Result(trial, world(trial)))
    for trial in every_recovery(seen):
        seen.results.append(Result(trial, world(trial)))
    for learner in first_trained(seen):
        for engine, epochs in itertools.product(ENGINES, (1, 4, 16, 64)):
            other: Learner = replace(learner, engine=engine, epochs=epochs)
            seen.results.append(Result(other.trial, world(other.trial)))
    return seen


def every_recovery(seen: Seen) -> Iterator[Trial]:
    for engine in ENGINES:
        alone = Seen(replace(seen.limits, latency_ms=None, size_mb=None), [engine])
        alone.results = [r for r in seen.results if r.trial.engine == engine and "static" in r.trial.name]
        yield from recovery(alone)


def ratio_of(trial: Trial) -> float:
    found = re.search(r"ratio=([\d.]+)", " ".join(trial.words))
    return float(found[1]) if found else 1.0
