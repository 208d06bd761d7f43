"""Limits: which make sense, how a run is judged by them, and what is told before any work starts."""

from __future__ import annotations

import math
from typing import Any

import pytest

from qexp.types import UserError
from qexp.within_limits.answer import on_test_images, verdict
from qexp.within_limits.limits import MISSED, SEEN, SURELY, UNKNOWN
from tests.report.support import record
from tests.within.worlds import limits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop": -0.5}, "limits.drop=-0.5 is out of range; give percentage points 0 or more, or null for no limit"),
        ({"latency_ms": 0}, "limits.latency_ms=0 is out of range; give ms above 0"),
        ({"size_mb": "small"}, "limits.size_mb=small is out of range; give MB above 0"),
        ({"memory_mb": math.nan}, "limits.memory_mb=nan is out of range"),
        ({"macs_m": True}, "limits.macs_m=True is out of range"),
        ({"minutes": 0}, "limits.minutes=0 is out of range; give minutes above 0."),
        ({"minutes": None}, "limits.minutes=None is out of range"),
        ({"minimise": ["latencyms"]}, "minimise=latencyms is unknown. did you mean 'latency_ms'"),
        ({"minimise": []}, "is no list of names"),
        ({"minimise": ["top1"]}, "minimise=top1 is unknown"),
        ({"methods": ["statik"]}, "limits.methods=statik is unknown. did you mean 'static'"),
        ({"bits": [8, 1]}, "limits.bits has 1; give numbers of bits among 32, 16, 8"),
        ({"drop": None}, "without limits.drop would find a network that answers at random"),
        ({"methods": ["static"], "bits": [16]}, "No method of limits.methods=['static'] gives limits.bits=[16]"),
        ({"methods": ["prune_channels"], "training": False}, "without training (limits.training=false)"),
        ({"bits": [4]}, "latency_ms is to be limited or minimised, but limits.bits=[4] allows only numbers of bits"),
        ({"bits": [4], "minimise": ["size_mb"], "memory_mb": 3}, "memory_mb is to be limited or minimised"),
        ({"minimise": ["macs_m"], "training": False}, "minimise=macs_m needs a method that leaves operations out"),
    ],
)
def test_limits_without_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        limits(**changes)
    assert message in str(raised.value)


def test_to_minimise_the_drop_needs_no_limit_of_it() -> None:
    assert limits(drop=None, minimise=["drop"], size_mb=1).given == {"size_mb": 1}
    assert not limits(minimise=["size_mb"], bits=[4, 2]).needs_kernels


METRICS = {"val_top1_drop": 0.004, "val_top1_drop_low": -0.001, "val_top1_drop_high": 0.009, "val_top1": 0.9,
           "latency_ms": 1.9, "latency_low_ms": 1.8, "latency_high_ms": 2.1, "size_mb": 5.0}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "how"),
    [
        ({"drop": 1.0}, SURELY), ({"drop": 0.9}, SURELY), ({"drop": 0.5}, SEEN), ({"drop": 0.3}, MISSED),
        ({"latency_ms": 2.1}, SURELY), ({"latency_ms": 2.0}, SEEN), ({"latency_ms": 1.85}, MISSED),
        ({"size_mb": 5.0}, SURELY), ({"size_mb": 4.99}, MISSED), ({"memory_mb": 10}, UNKNOWN),
    ],
)  # fmt: skip
def test_a_limit_holds_surely_if_the_whole_interval_does(changes: dict[str, float], how: str) -> None:
    (name,) = changes
    judged = {each.name: each for each in limits(**changes).judge(METRICS)}[name]
    assert judged.how == how
    assert limits(**changes).hold([judged]) == (how in (SURELY, SEEN))
    assert limits(**changes, sure=True).hold([judged]) == (how == SURELY)
    assert (judged.excess > 0) == (how in (MISSED, UNKNOWN))


def test_what_is_said_of_a_limit() -> None:
    judged = limits(drop=0.5, latency_ms=1.5, memory_mb=10).judge(METRICS)
    assert [*map(str, judged)] == [
        "drop 0.4 (-0.1 to 0.9) points, limit 0.5: holds on what was seen",
        "latency_ms 1.9 (1.8 to 2.1) ms, limit 1.5: missed",
        "memory_mb is unknown (limit 10)",
    ]
    assert verdict(judged) == "latency_ms missed, memory_mb unknown" and verdict(judged[:1]) == SEEN
    assert judged[1].excess == pytest.approx(0.4 / 1.5)


def test_scores_weigh_ratios() -> None:
    asked = limits(minimise=["latency_ms", "size_mb"])
    halves = [asked.score({**METRICS, name: METRICS[name] / 2}) for name in ("latency_ms", "size_mb")]
    assert halves[0] == pytest.approx(halves[1]) == pytest.approx(asked.score(METRICS) - math.log(2))
    assert limits(minimise=["memory_mb"]).score(METRICS) == math.inf
    better = {**METRICS, "val_top1": 0.95, "val_top1_drop": -0.046}
    assert limits(minimise=["drop"]).score(better) == pytest.approx(
        limits(minimise=["drop"]).score(METRICS) - math.log(2)
    )


def test_what_the_test_images_say() -> None:
    metrics = {"top1": 0.895, "top1_low": 0.88, "top1_high": 0.91, "top1_drop": 0.005, "top1_drop_low": 0.001,
               "top1_drop_high": 0.009, "mcnemar_p": 0.03}  # fmt: skip
    assert on_test_images(record("x", **metrics)) == (
        "top-1 89.50 % (88.00 to 91.00), fp32 90.00 %: 0.50 points lost (0.10 to 0.90); a difference was shown "
        "(McNemar's test, p = 0.03)"
    )
    assert on_test_images(record("x")) == "no accuracy was measured"
