"""The steps of a search within limits that train: fewer channels and trained integers, for more and more epochs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace

from qexp.within_limits.limits import DROP, MISSED
from qexp.within_limits.seen import Result, Seen, Trial
from qexp.within_limits.untrained import FLOATING, INTEGERS

PRUNING, TRAINING, ELSEWHERE = "first epochs of training", "longer training", "what was trained, on other engines"
RATIOS = (1.5, 2, 3, 4)  # times as few of the target
TARGETS = {"macs": "operations", "parameters": "parameters"}
GROWTH = 4  # times as many epochs for those that train on
FIRST_EPOCHS, MOST_EPOCHS = 1, 64
NEAR = 2.0  # points lost too much that other engines may make up for


def trained(seen: Seen) -> Iterator[list[Trial]]:
    """Yield the trials of each step, as `funnel` does."""
    every = pool = first_trained(seen)
    while pool:
        yield [learner.trial for learner in pool if not learner.waits]
        pool = next_pool(seen, pool)
    yield elsewhere(seen, every)


@dataclass(frozen=True)
class Learner:
    """Something that training can improve.

    Attributes:
        name: What people call it.
        engine: The engine that it runs on.
        words: The overrides of its trials, without the epochs.
        option: The option that takes the epochs.
        epochs: Epochs of its next trial.
        past: What came of its trials so far.
        waits: Whether others train before it.
    """

    name: str
    engine: str
    words: tuple[str, ...]
    option: str
    epochs: int = FIRST_EPOCHS
    past: tuple[Result, ...] = ()
    waits: bool = False

    @property
    def trial(self) -> Trial:
        name = f"{self.name} on {self.engine}, {self.epochs} epoch{'s' * (self.epochs > 1)}"
        words = (*self.words, f"{self.option}={self.epochs}", f"engine={self.engine}")
        return Trial(TRAINING if self.past else PRUNING, name, words, self.engine, self.epochs)


def first_trained(seen: Seen) -> list[Learner]:
    """Integers that are trained, and networks with fewer channels, in integers if these are allowed."""
    limits, integer = seen.limits, seen.limits.allows("static", 8)
    engine = next(iter(seen.leading([INTEGERS, FLOATING], 1)), None)
    if engine is None:
        return []
    found = []
    if limits.allows("qat", 8) and any(r.finished and seen.misses_drop(r) for r in seen.of_step(INTEGERS)):
        found.append(Learner("trained int8", engine, ("method=qat", "bits=8"), "method.recipe.epochs"))
    if limits.allows("prune_channels", 8 if integer else 32) and prunes(seen):
        target = "parameters" if wants_size(seen, engine) else "macs"
        stage = "method.stages.prune_channels" if integer else "method"
        method = ("method=prune_channels_static", "bits=8") if integer else ("method=prune_channels", "bits=32")
        for ratio in RATIOS:
            words = (*method, f"{stage}.target={target}", f"{stage}.ratio={ratio:g}")
            said = f"{ratio:g} times fewer {TARGETS[target]}{', int8' * integer}"
            found.append(Learner(said, engine, words, f"{stage}.recipe.epochs"))
    return found


def wants_size(seen: Seen, engine: str) -> bool:
    """Whether channels are pruned for the size: the only cost whose limit is missed, or what is minimised first."""
    untrained = next((r for r in seen.of_step(INTEGERS) + seen.of_step(FLOATING) if r.trial.engine == engine), None)
    judged = seen.judged(untrained) if untrained and untrained.finished else []
    missed = {each.name for each in judged if each.how == MISSED} - {DROP}
    minimised = [name for name in seen.limits.minimise if name != DROP]
    return missed == {"size_mb"} or (not missed and minimised[:1] == ["size_mb"])


def prunes(seen: Seen) -> bool:
    """Whether fewer channels could help: something that they make smaller is minimised, or nothing holds yet."""
    return [*seen.limits.minimise] != [DROP] or not seen.holding


def next_pool(seen: Seen, pool: list[Learner]) -> list[Learner]:
    """Choose who trains next, who waits, and who is given up, for reasons that go to `seen.dropped`.

    The half that is expected to hold the limits after the fewest epochs trains next, those first of which less of what
    is minimised is left. What they reach may then be more than the others can beat.

    Args:
        seen: The state of the search.
        pool: Those that trained last, and those that waited.

    Returns:
        Those that train next, with their epochs, and those that wait.
    """
    left = [learner for each in pool if (learner := _with_result(seen, each))]
    trend = shrinking(seen, left)
    kept = []
    for learner in left:
        if why := given_up(seen, learner, trend):
            seen.dropped[f"more epochs for {learner.name}"] = why
        else:
            kept.append(learner)
    scores = seen.scores()
    needed = {learner.name: needed_epochs(seen, learner, trend) for learner in kept}
    kept.sort(key=lambda learner: (needed[learner.name], scores[learner.past[-1].trial.name]))
    going, waiting = list[Learner](), list[Learner]()
    for learner in kept:
        last = learner.past[-1]
        epochs = fitting(last, needed[learner.name] if len(learner.past) > 1 else 0, seen.left)
        if epochs is None:
            seen.dropped[f"more epochs for {learner.name}"] = (
                f"the last {last.trial.epochs} took {last.seconds / 60:.1f} minutes, and {max(0, seen.left) / 60:.1f} "
                "are left"
            )
        elif len(going) < math.ceil(len(kept) / 2):
            going.append(replace(learner, epochs=epochs, waits=False))
        else:
            waiting.append(replace(learner, waits=True))
    return [*going, *waiting]


def _with_result(seen: Seen, learner: Learner) -> Learner | None:
    """The learner with what came of its last trial, or None if there is nothing to go on from or to go on for."""
    if learner.waits:
        return learner
    result = seen.result_of(learner.trial)
    if result is None or not result.finished or (seen.holds(result) and DROP not in seen.limits.minimise):
        return None
    return replace(learner, past=(*learner.past, result))


def shrinking(seen: Seen, pool: list[Learner]) -> dict[str, float | None]:
    """By what factor the points that are lost shrink each time that the epochs are multiplied by `GROWTH`, by name.

    The last two trials tell it. For those that trained once it is the median of the others, and None if there is none.
    """
    known = {}
    for learner in pool:
        *before, last = learner.past
        if before and seen.lost(before[-1]) > 0 and math.isfinite(seen.lost(last)):
            times = math.log(last.trial.epochs / before[-1].trial.epochs, GROWTH)
            ratio = max(seen.lost(last), 0.0) / seen.lost(before[-1])
            known[learner.name] = min(1.0, ratio ** (1 / times))
    middle = statistics.median(known.values()) if known else None
    return {learner.name: known.get(learner.name, middle) for learner in pool}


def expected(seen: Seen, learner: Learner, factor: float, epochs: int) -> float:
    """Points that a learner is expected to lose after so many epochs, by the trend."""
    last = learner.past[-1]
    return seen.lost(last) * factor ** math.log(epochs / last.trial.epochs, GROWTH)


def given_up(seen: Seen, learner: Learner, trend: dict[str, float | None]) -> str:
    """Why more training is no use, or empty.

    Training changes nothing but accuracy: what misses another limit goes on missing it, and what is no better than the
    best that holds stays so. What loses too much may win it back, as far as the trend tells.
    """
    last, factor, drop = learner.past[-1], trend[learner.name], seen.limits.drop
    if why := seen.misses_cost(last) or seen.cannot_beat(last):
        return why
    if last.trial.epochs >= MOST_EPOCHS:
        return f"{MOST_EPOCHS} epochs are the most that are tried"
    if drop is None or factor is None:
        return ""
    in_the_end = expected(seen, learner, factor, MOST_EPOCHS)
    if in_the_end <= drop:
        return ""
    return (
        f"{seen.lost(last):.2f} points lost after {last.trial.epochs} epoch{'s' * (last.trial.epochs > 1)}, and "
        f"{in_the_end:.2f} after {MOST_EPOCHS} by the trend"
    )


def needed_epochs(seen: Seen, learner: Learner, trend: dict[str, float | None]) -> int:
    """The epochs after which a learner is expected to hold the limits."""
    factor, drop, epochs = trend[learner.name], seen.limits.drop, learner.past[-1].trial.epochs * GROWTH
    if factor is None or drop is None:
        return epochs
    while epochs < MOST_EPOCHS and expected(seen, learner, factor, epochs) > drop:
        epochs *= 2
    return min(epochs, MOST_EPOCHS)


def fitting(last: Result, needed: int, left: float) -> int | None:
    """How many epochs the next trial has, or None if not even twice as many would fit into the seconds that are left.

    A trial is taken to need time in proportion to its epochs, which is more than it will need.

    Args:
        last: What came of the last trial.
        needed: Epochs that are needed, as far as that is known, or 0.
        left: Seconds that are left.
    """
    epochs = min(max(last.trial.epochs * GROWTH, needed), MOST_EPOCHS)
    while epochs > last.trial.epochs:
        if last.seconds * epochs / last.trial.epochs <= left:
            return epochs
        epochs //= 2
    return None


def elsewhere(seen: Seen, pool: list[Learner]) -> list[Trial]:
    """Trials of pruned networks on the better half of the other engines, for which they need not be trained again.

    Engines round differently, so that what loses up to `NEAR` points too much on one may hold on another.

    Args:
        seen: The state of the search.
        pool: All that was trained.
    """
    leaders = seen.leading([INTEGERS, FLOATING], math.ceil(len(seen.engines) / 2))
    found = []
    for learner in pool:
        ended = [r for r in seen.finished if r.trial.words[:-2] == learner.words and r.trial.engine == learner.engine]
        last = max(ended, key=lambda result: result.trial.epochs, default=None)
        if last is None or "prune_channels" not in learner.words[0] or seen.misses_cost(last):
            continue
        if seen.limits.drop is None or seen.lost(last) <= seen.limits.drop + NEAR:
            moved = replace(learner, epochs=last.trial.epochs)
            found += [
                replace(replace(moved, engine=engine).trial, step=ELSEWHERE)
                for engine in leaders if engine != learner.engine
            ]  # fmt: skip
    return found
