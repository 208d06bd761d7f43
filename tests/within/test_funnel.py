"""The steps of a search in made-up worlds, in which the whole space can be looked at."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from qexp.records import Record
from qexp.within_limits.seen import Result, Seen, Trial
from qexp.within_limits.training import ELSEWHERE, PRUNING, TRAINING, fitting
from qexp.within_limits.untrained import FEWER, FLOATING, INTEGERS, RECOVERY
from tests.within.worlds import ENGINES, Numbers, exhaustive, limits, ratio_of, searched, some

CALM = Numbers(dict(zip(ENGINES, (1.0, 2.0, 4.0), strict=True)), dict.fromkeys(ENGINES, 0.1), 4.0, 0.6)


def names(seen: Seen) -> list[str]:
    return [result.trial.name for result in seen.results]


def test_it_loses_little_to_an_exhaustive_search_and_takes_a_part_of_its_time() -> None:
    ratios, shares = [], []
    for seed in range(16):
        world, asked = some(seed), limits(drop=0.5 + seed % 4 / 2)
        everything, seen = exhaustive(world, asked), searched(world, asked)
        best, found = ({r.trial.name: each.scores()[r.trial.name] for r in each.holding} for each in (everything, seen))
        ratios.append(math.exp(min(found.values()) - min(best.values())))
        shares.append(sum(r.seconds for r in seen.results) / sum(r.seconds for r in everything.results))
        assert next(iter(found)) == min(found, key=found.__getitem__)
    assert sum(ratio <= 1.05 for ratio in ratios) >= 15 and max(ratios) < 1.3, sorted(ratios)
    assert max(shares) < 0.35 and sum(shares) / len(shares) < 0.2


def test_cheap_steps_come_first_and_nothing_is_tried_twice() -> None:
    seen = searched(CALM, limits())
    steps = [result.trial.step for result in seen.results]
    order = [FLOATING, INTEGERS, RECOVERY, FEWER, PRUNING, TRAINING, ELSEWHERE]
    assert [order.index(step) for step in steps] == sorted(order.index(step) for step in steps)
    assert len({*names(seen)}) == len(names(seen)) and not {*names(seen)} & seen.dropped.keys()
    assert steps.count(FLOATING) == 6 and steps.count(INTEGERS) == 3


def test_accuracy_is_won_back_on_the_better_engines_alone_where_it_is_lost() -> None:
    world = replace(CALM, rounding={"quick": 3.0, "middling": 0.2, "slow": 3.0})
    seen = searched(world, limits(training=False))
    assert [result.trial.name for result in seen.of_step(RECOVERY)] == [
        "accuracy control on quick", "reconstructed int8 on quick"
    ]  # fmt: skip
    assert "method.accept_points=1" in seen.of_step(RECOVERY)[0].trial.words
    assert seen.dropped["accuracy control on slow"] == "static int8 is better on quick and middling"
    assert seen.holding[0].trial.name == "accuracy control on quick", "1.5 ms, and int8 on middling takes 2 ms"
    within_size = searched(world, limits(training=False, size_mb=1.5))
    assert not within_size.of_step(RECOVERY)
    assert within_size.dropped["accuracy control on quick"].startswith("size_mb 2 MB, limit 1.5: missed")


def test_who_cannot_be_fast_or_small_enough_is_not_trained_on() -> None:
    seen = searched(CALM, limits(size_mb=0.9))
    reasons = {name: why for name, why in seen.dropped.items() if name.startswith("more epochs")}
    assert "size_mb 1.33 MB, limit 0.9: missed" in reasons["more epochs for 1.5 times fewer parameters, int8"]
    assert "size_mb 1 MB, limit 0.9: missed" in reasons["more epochs for 2 times fewer parameters, int8"]
    trained = seen.of_step(TRAINING)
    assert trained and min(ratio_of(result.trial) for result in trained) == 3


@pytest.mark.parametrize(
    ("asked", "target"),
    [
        ({"minimise": ["size_mb"]}, "parameters"), ({"minimise": ["latency_ms"]}, "macs"),
        ({"size_mb": 1}, "parameters"), ({"size_mb": 1, "latency_ms": 0.5}, "macs"),
        ({"minimise": ["size_mb"], "latency_ms": 0.5}, "macs"),
    ],
)  # fmt: skip
def test_channels_are_pruned_for_what_is_missed(asked: dict[str, Any], target: str) -> None:
    """int8 takes 1 ms and 2 MB."""
    first = searched(CALM, limits(**asked)).of_step(PRUNING)[0]
    assert f"method.stages.prune_channels.target={target}" in first.trial.words


def test_half_of_those_that_train_go_on_and_then_as_long_as_the_trend_asks_for() -> None:
    """Points shrink by 4 ** -0.6 = 0.435 with four times the epochs, from 12.1, 8.1, 4.1 and 2.1."""
    seen = searched(replace(CALM, rounding=dict.fromkeys(ENGINES, 0.0)), limits(drop=0.8))
    trained = [(ratio_of(r.trial), r.trial.epochs) for r in seen.of_step(PRUNING) + seen.of_step(TRAINING)]
    assert trained[:6] == [(1.5, 1), (2, 1), (3, 1), (4, 1), (4, 4), (3, 4)] and (3, 64) in trained
    assert seen.dropped["more epochs for 4 times fewer operations, int8"] == (
        "5.22 points lost after 4 epochs, and 0.99 after 64 by the trend"
    )
    assert ratio_of(seen.holding[0].trial) == 3


def test_a_trend_that_leads_nowhere_is_given_up() -> None:
    seen = searched(replace(CALM, healing=0.05, pruning=20.0), limits())
    why = seen.dropped["more epochs for 1.5 times fewer operations, int8"]
    assert why == "10.10 points lost after 1 epoch, and 8.21 after 64 by the trend"
    assert not any(result.trial.epochs > 4 for result in seen.results)
    assert seen.holding[0].trial.name == "static int8 on quick"


def test_what_cannot_beat_the_best_is_not_trained_on() -> None:
    seen = searched(replace(CALM, pruning=0.6), limits(drop=0.8))
    assert seen.holding[0].trial.epochs == 1 or ratio_of(seen.holding[0].trial) == 4
    assert not any(result.trial.epochs > 1 and ratio_of(result.trial) < 2 for result in seen.results)


@pytest.mark.parametrize("minutes", [0.5, 1.5, 2.5, 5])
def test_time_that_runs_out_ends_it_with_what_was_found(minutes: float) -> None:
    seen = searched(CALM, limits(minutes=minutes, drop=0.2))
    last = seen.results[-1].seconds
    assert sum(result.seconds for result in seen.results) <= 60 * minutes + last
    assert seen.holding


def test_the_last_training_is_as_long_as_the_time_lasts() -> None:
    last = Result(Trial("", "x", (), "quick", 4), replace(CALM(Trial("", "x", ("method=none",), "quick")), seconds=40))
    assert [fitting(last, 0, left) for left in (1000, 160, 159, 80, 79)] == [16, 16, 8, 8, None]
    most = Result(replace(last.trial, epochs=64), last.record)
    assert fitting(most, 0, 1e9) is None


def test_fewer_bits_are_for_what_needs_no_kernels() -> None:
    asked = limits(bits=[32, 8, 6, 5, 4], minimise=["size_mb"], training=False, drop=0.5)
    seen = searched(replace(CALM, rounding={**CALM.rounding, "eager": 0.1}, speed={**CALM.speed, "eager": 9.0}), asked)
    tried = [" ".join(result.trial.words) for result in seen.of_step(FEWER)]
    assert tried[:3] == [f"method=static bits={bits} engine=eager" for bits in (6, 5, 4)]
    assert tried[3] == "method=reconstruct bits=5 engine=eager", "6 bits lose 0.4 points, 5 bits lose 0.8"
    budget = "method.budget.size_mb=null method.budget.average_bits=5.5"
    assert tried[4] == f"method=mixed method.candidates=[4,5,6,8] {budget} engine=eager"
    timed = searched(CALM, limits(bits=[8, 4]))
    assert "no engine has kernels below 8 bits" in timed.dropped["4 bits"] and not timed.of_step(FEWER)


def test_several_minima_give_a_front_that_nothing_beats() -> None:
    world = replace(CALM, pruning=1.0)
    seen = searched(world, limits(minimise=["drop", "latency_ms"], drop=3.0))
    points = [(seen.lost(r), r.record.metrics["latency_ms"]) for r in seen.front if r.record]
    everything = [(seen.lost(r), r.record.metrics["latency_ms"]) for r in seen.holding if r.record]
    assert len(points) > 1
    for point in everything:
        beaten = any(a <= point[0] and b <= point[1] and (a, b) != point for a, b in everything)
        assert (point in points) != beaten


def test_what_was_trained_is_tried_on_other_engines_too() -> None:
    world = replace(CALM, rounding={"quick": 1.4, "middling": 0.0, "slow": 0.0}, pruning=2.0)
    seen = searched(world, limits(methods=["none", "static", "prune_channels"]))
    assert {result.trial.engine for result in seen.of_step(PRUNING)} == {"quick"}
    assert {result.trial.engine for result in seen.of_step(ELSEWHERE)} == {"middling"}
    assert seen.holding[0].trial.step == ELSEWHERE


def test_failures_are_passed_over() -> None:
    def world(trial: Trial) -> Record:
        made = CALM(trial)
        failed = replace(made, status="failed", reason="it crashed", measurements=())
        return failed if trial.engine == "quick" else made

    seen = searched(world, limits())
    assert seen.holding and {result.trial.engine for result in seen.holding} == {"middling", "slow"}
    assert {result.trial.engine for result in seen.of_step(PRUNING)} == {"middling"}
