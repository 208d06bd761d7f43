"""The steps of a search within limits that train nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator

from qexp.within_limits.seen import Seen, Trial

FLOATING, INTEGERS = "floating point and half precision", "8-bit integers without training"
RECOVERY, FEWER = "accuracy won back without training", "fewer than 8 bits"
SIMULATOR = "eager"  # the engine that computes any number of bits


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
