"""The steps of a search within limits, the cheap ones first. Each decides by what those before it have shown.

Nothing here runs anything. `funnel` yields the trials of one step after the other, and reads what came of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from qexp.within.limits import DROP
from qexp.within.seen import Result, Seen, Trial

FLOATING, INTEGERS = "floating point and half precision", "8-bit integers without training"
RECOVERY, FEWER = "accuracy won back without training", "fewer than 8 bits"
PRUNING, TRAINING = "first epochs of training", "longer training"
RATIOS = (1.5, 2, 3, 4)  # times as few of the target
TARGETS = {"macs": "operations", "parameters": "parameters"}
GROWTH = 4  # times as many epochs for those that go on, of which there are half as many (successive halving)
FIRST_EPOCHS, MOST_EPOCHS = 1, 64
SIMULATOR = "eager"  # the engine that computes any number of bits


def funnel(seen: Seen) -> Iterator[list[Trial]]:
    """Yield the trials of each step. What came of them has to be in `seen` before the next step is asked for.

    Args:
        seen: The state of the search. Reasons why trials are left out are added to it.
    """
    yield floating(seen)
    yield integers(seen)
    yield recovery(seen)
    yield from fewer_bits(seen)
    pool = first_trained(seen)
    while pool:
        yield [learner.trial for learner in pool]
        pool = promising(seen, pool)


def on(engine: str, method: str, *words: str, step: str, name: str = "") -> Trial:
    called = f"{name or method} on {engine}"
    return Trial(step, called, (f"method={method}", *words, f"engine={engine}"), engine)


def floating(seen: Seen) -> list[Trial]:
    """fp32 and half precision on all engines."""
    found = []
    if seen.limits.allows("none"):
        found += [on(engine, "none", "bits=32", step=FLOATING, name="fp32") for engine in seen.engines]
    if seen.limits.allows("half"):
        found += [on(engine, "half", "bits=16", step=FLOATING) for engine in seen.engines]
    return found


def integers(seen: Seen) -> list[Trial]:
    """Static int8 with the remedies that it looks for itself, on all engines."""
    if not seen.limits.allows("static", 8):
        return []
    return [on(engine, "static", "bits=8", step=INTEGERS, name="static int8") for engine in seen.engines]


def recovery(seen: Seen) -> list[Trial]:
    """Accuracy control and reconstruction where int8 loses too much, on the better half of the engines."""
    leaders = seen.leading([INTEGERS], math.ceil(len(seen.engines) / 2))
    found: list[Trial] = []
    for result in seen.of_step(INTEGERS):
        if not result.finished or not seen.misses_drop(result):
            continue
        engine = result.trial.engine
        ways = {
            "control": on(
                engine, "static", "bits=8", f"method.accept_points={seen.limits.drop:g}",
                "method.accept_images=${measure.accuracy.images}", step=RECOVERY, name="accuracy control",
            ),
            "reconstruct": on(engine, "reconstruct", "bits=8", step=RECOVERY, name="reconstructed int8"),
        }  # fmt: skip
        if not seen.limits.allows("reconstruct", 8):
            del ways["reconstruct"]
        if not {32} <= {*seen.limits.bits}:
            del ways["control"]  # it needs layers in floating point
        why = ""
        if engine not in leaders:
            why = f"static int8 is better on {' and '.join(leaders)}"
        why = why or seen.misses_cost(result) or seen.cannot_beat(result)
        if why:
            seen.dropped |= {way.name: why for way in ways.values()}
        else:
            found += ways.values()
    return found


def fewer_bits(seen: Seen) -> Iterator[list[Trial]]:
    """Fewer bits than kernels have, as simulations, where nothing is wanted that needs kernels."""
    low = sorted((bits for bits in seen.limits.bits if bits < 8), reverse=True)
    if not low:
        return
    if seen.limits.needs_kernels:
        names = ", ".join(f"{bits} bits" for bits in low)
        seen.dropped[names] = "no engine has kernels below 8 bits, and time or memory is asked for"
        return
    if seen.limits.allows("static"):
        yield [on(SIMULATOR, "static", f"bits={b}", step=FEWER, name=f"static int{b}") for b in low]
    yield between(seen, low)


def between(seen: Seen, low: list[int]) -> list[Trial]:
    """The fewest bits that hold the accuracy, and the next fewer: what lies between, and what better rounding wins."""
    tried = {result.trial.words[1]: result for result in seen.of_step(FEWER) if result.finished}
    held = [b for b in low if f"bits={b}" in tried and not seen.misses_drop(tried[f"bits={b}"])]
    above = min(held, default=8)
    below = max((b for b in low if b < above), default=None)
    if below is None:
        return []
    found = []
    if seen.limits.allows("reconstruct", below):
        found.append(on(SIMULATOR, "reconstruct", f"bits={below}", step=FEWER, name=f"reconstructed int{below}"))
    if seen.limits.allows("mixed"):
        candidates = sorted({b for b in seen.limits.bits if b <= 8})
        budgets = {f"{(above + below) / 2:g} bits on average": f"average_bits={(above + below) / 2:g}"}
        if seen.limits.size_mb is not None:
            budgets[f"{seen.limits.size_mb:g} MB"] = f"size_mb={seen.limits.size_mb:g}"
        for said, budget in budgets.items():
            other = "size_mb" if budget.startswith("average_bits") else "average_bits"
            words = (f"method.candidates={candidates}".replace(" ", ""), f"method.budget.{other}=null")
            found.append(on(SIMULATOR, "mixed", *words, f"method.budget.{budget}", step=FEWER, name=f"mixed {said}"))
    return found


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
    """

    name: str
    engine: str
    words: tuple[str, ...]
    option: str
    epochs: int = FIRST_EPOCHS
    past: tuple[Result, ...] = ()

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
        wanted = [*(name for name in limits.minimise if name != DROP), *limits.given]
        target = "parameters" if wanted[:1] == ["size_mb"] else "macs"
        stage = "method.stages.prune_channels" if integer else "method"
        method = ("method=prune_channels_static", "bits=8") if integer else ("method=prune_channels", "bits=32")
        for ratio in RATIOS:
            words = (*method, f"{stage}.target={target}", f"{stage}.ratio={ratio:g}")
            said = f"{ratio:g} times fewer {TARGETS[target]}{', int8' * integer}"
            found.append(Learner(said, engine, words, f"{stage}.recipe.epochs"))
    return found


def prunes(seen: Seen) -> bool:
    """Whether fewer channels could help: something that they make smaller is minimised, or nothing holds yet."""
    return [*seen.limits.minimise] != [DROP] or not seen.holding


def promising(seen: Seen, pool: list[Learner]) -> list[Learner]:
    """Choose what trains on, and for how long. The reasons for all others go to `seen.dropped`.

    Of those that `given_up` says nothing about, the half that loses least trains `GROWTH` times as long, or as long as
    the time lasts.
    """
    order = []
    for learner in pool:
        result = seen.result_of(learner.trial)
        if result is None or not result.finished or (seen.holds(result) and DROP not in seen.limits.minimise):
            continue  # there is nothing to go on from, or nothing to go on for
        learner = replace(learner, past=(*learner.past, result))
        if why := given_up(seen, learner):
            seen.dropped[f"more epochs for {learner.name}"] = why
        else:
            order.append(learner)
    order.sort(key=lambda learner: seen.lost(learner.past[-1]))
    half, going = math.ceil(len(order) / 2), list[Learner]()
    for place, learner in enumerate(order):
        last = learner.past[-1]
        epochs = longer(last, seen.left)
        if place >= half:
            why = f"{seen.lost(last):.2f} points lost after {last.trial.epochs} epochs, more than what goes on"
        elif last.trial.epochs >= MOST_EPOCHS:
            why = f"{MOST_EPOCHS} epochs are the most that are tried"
        elif epochs is None:
            why = f"{last.trial.epochs} epochs took {last.seconds / 60:.1f} minutes, and {seen.left / 60:.1f} are left"
        else:
            going.append(replace(learner, epochs=epochs))
            continue
        seen.dropped[f"more epochs for {learner.name}"] = why
    return going


def given_up(seen: Seen, learner: Learner) -> str:
    """Why more training is no use, or empty.

    Training changes nothing but accuracy: what misses another limit goes on missing it, and what is no better than the
    best that holds stays so. What loses too much may win it back. By how much is told by its last two trials, taking
    the points that are lost to shrink by the same factor each time that the epochs are multiplied by `GROWTH`.
    """
    *before, last = learner.past
    if why := seen.misses_cost(last) or seen.cannot_beat(last):
        return why
    drop, lost = seen.limits.drop, seen.lost(last)
    if drop is None or not before or not before[-1].finished or not math.isfinite(lost):
        return ""
    factor = lost / seen.lost(before[-1]) if seen.lost(before[-1]) > 0 else 1.0
    times = math.log(MOST_EPOCHS / last.trial.epochs, GROWTH)
    expected = lost * min(1.0, factor) ** times
    if expected <= drop:
        return ""
    return (
        f"{seen.lost(before[-1]):.2f} points lost after {before[-1].trial.epochs} epochs and {lost:.2f} after "
        f"{last.trial.epochs}: by this trend, {expected:.2f} after {MOST_EPOCHS}"
    )


def longer(last: Result, left: float) -> int | None:
    """How many epochs the next trial has, or None if not even twice as many would fit into the seconds that are left.

    A trial is taken to need time in proportion to its epochs, which is more than it will need.
    """
    epochs = min(last.trial.epochs * GROWTH, MOST_EPOCHS)
    while epochs > last.trial.epochs:
        if last.seconds * epochs / last.trial.epochs <= left:
            return epochs
        epochs //= 2
    return None
