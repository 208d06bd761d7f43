"""Times against engines that take a known time, statistics against numpy, scipy and the standard library."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap

from qexp.measure.base import Bench, Subject, fastest
from qexp.measure.latency import Latency, speedup
from qexp.types import Artifact, Measurement, UserError
from tests.measure.fake_engines import Fails, SlowStart, Takes, TakesToo

QUICK = Latency(windows=5, calls=8, window_s=0.02, warmup_calls=3, warmup_s=0.01)
MakeBench = Callable[..., Bench]


def by_name(found: list[Measurement]) -> dict[str, float]:
    assert len({m.name for m in found}) == len(found)
    return {m.name: m.value for m in found}


def test_five_milliseconds_read_five_milliseconds(make_bench: MakeBench) -> None:
    found = QUICK.measure(make_bench(Takes(5)))
    values = by_name(found)
    assert values["latency_ms"] == pytest.approx(5, rel=0.05)
    assert values["latency_p50_ms"] == pytest.approx(5, rel=0.05)
    assert values["latency_ms_per_image"] == pytest.approx(values["latency_ms"] / 2)  # two images per call
    assert values["throughput_ips"] == pytest.approx(2 * 1000 / values["latency_ms"])
    assert "speedup" not in values
    assert next(m for m in found if m.name == "latency_ms").unit == "ms"


def test_the_clock_is_that_of_the_wall(make_bench: MakeBench) -> None:
    found = QUICK.measure(make_bench(Takes(5, own_clock=False)))
    samples = next(m.samples for m in found if m.name == "latency_ms")
    assert min(samples) == pytest.approx(5, rel=0.05)  # other programs only ever add to it
    assert min(samples) >= 5 and len(samples) >= 5 * 8


def test_a_slow_first_call_is_seen_in_first_call_ms_only(make_bench: MakeBench) -> None:
    values = by_name(QUICK.measure(make_bench(SlowStart(load_ms=0, first_ms=250))))
    assert values["first_call_ms"] >= 250
    assert values["latency_ms"] < 5 and values["latency_p90_ms"] < 25


def test_half_the_time_is_twice_as_fast(make_bench: MakeBench) -> None:
    values = by_name(QUICK.measure(make_bench(Takes(2), baseline=Takes(4))))
    assert values["latency_ms"] == pytest.approx(2, rel=0.05)
    assert values["speedup"] == pytest.approx(2, rel=0.05)
    assert values["speedup_low"] <= values["speedup"] <= values["speedup_high"]
    assert values["speedup_low"] * 0.99 <= 2 <= values["speedup_high"] * 1.01  # 1 %: the calls' own cost


def test_a_against_a_shows_no_difference(make_bench: MakeBench) -> None:
    values = by_name(QUICK.measure(make_bench(Takes(2), baseline=Takes(2))))
    assert values["speedup"] == pytest.approx(1, rel=0.05)
    assert values["speedup_low"] * 0.99 <= 1 <= values["speedup_high"] * 1.01


def test_the_baseline_itself_has_no_speedup(make_bench: MakeBench) -> None:
    bench = make_bench(Takes(1))
    bench.baseline = copy.copy(bench.subject)
    assert bench.is_baseline and "speedup" not in by_name(QUICK.measure(bench))


def test_a_simulated_format_has_no_latency(make_bench: MakeBench, make_artifact: Callable[..., Artifact]) -> None:
    assert QUICK.measure(make_bench(Fails("leave"), artifact=make_artifact(simulated=True))) == []


@dataclass
class Scripted:
    """A subject whose windows are given; `asked` collects who was asked in which order."""

    windows: Iterator[list[float]]
    name: str = "a"
    asked: list[str] = field(default_factory=list)
    batch: int = 4
    start: dict[str, float] = field(default_factory=lambda: {"load_ms": 70.0, "first_call_ms": 9.0})

    def window(self, calls: int, seconds: float) -> list[float]:
        self.asked.append(self.name)
        return next(self.windows)


def scripted(*windows: list[float], **values: Any) -> Any:
    return Scripted(iter(windows), **values)


def test_statistics_are_those_of_the_standard_library() -> None:
    rng = np.random.default_rng(1)
    windows = [list(rng.lognormal(1, 0.3, size)) for size in (12, 30, 17)]
    found = QUICK.describe(windows, scripted())
    values, samples = by_name(found), [s for window in windows for s in window]
    cuts = statistics.quantiles(samples, n=100, method="inclusive")  # cuts[k - 1] is the k-th percentile
    assert values == pytest.approx({
        "latency_ms": sorted(statistics.median(w) for w in windows)[1],
        "latency_ms_per_image": sorted(statistics.median(w) for w in windows)[1] / 4,
        "latency_mean_ms": math.fsum(samples) / 59, "latency_std_ms": statistics.stdev(samples),
        "latency_p50_ms": cuts[49], "latency_p90_ms": cuts[89], "latency_p99_ms": cuts[98],
        "load_ms": 70, "first_call_ms": 9, "throughput_ips": 4000 / values["latency_ms"],
        "latency_spread": (cuts[74] - cuts[24]) / values["latency_ms"],
    })  # fmt: skip
    assert next(m for m in found if m.name == "latency_ms").samples == tuple(samples)


def test_one_slow_window_does_not_move_the_latency() -> None:
    quiet, disturbed = [1.0] * 10, [50.0] * 1000
    assert by_name(QUICK.describe([quiet, disturbed, quiet], scripted()))["latency_ms"] == 1


@pytest.mark.parametrize("windows", [7, 20])
def test_the_interval_is_scipys_percentile_bootstrap(windows: int) -> None:
    rng = np.random.default_rng(windows)
    baseline, candidate = rng.lognormal(1, 0.2, windows), rng.lognormal(0, 0.2, windows)
    values = by_name(speedup(list(baseline), list(candidate)))
    ratios = baseline / candidate
    expected = bootstrap((ratios,), np.median, method="percentile", n_resamples=20000, rng=rng).confidence_interval
    assert values["speedup"] == pytest.approx(statistics.median(ratios))
    assert (values["speedup_low"], values["speedup_high"]) == pytest.approx((expected.low, expected.high), rel=0.02)


def test_the_interval_holds_the_true_ratio_about_as_often_as_it_says() -> None:
    rng, trials, windows, held = np.random.default_rng(0), 200, 20, 0
    for _ in range(trials):
        drift = rng.lognormal(0, 0.5, windows)  # of the machine: both see it
        baseline, candidate = 4 * drift * rng.lognormal(0, 0.02, windows), 2 * drift * rng.lognormal(0, 0.02, windows)
        values = by_name(speedup(list(baseline), list(candidate)))
        held += values["speedup_low"] <= 2 <= values["speedup_high"]
        assert values["speedup"] == pytest.approx(2, rel=0.1)
    assert 0.9 * trials <= held < trials


def test_windows_are_taken_in_turns() -> None:
    asked: list[str] = []
    subjects = [scripted(*[[1.0]] * 9, name=name, asked=asked) for name in "ab"]
    Latency(3, 1, 0, 1, 0).take_turns(subjects)
    assert asked[-6:] == list("ababab")


def test_warm_up_goes_on_until_two_windows_agree() -> None:
    times = [16.0, 8.0, 4.0, 2.0, 1.0, 0.98, 0.97, 0.97, 0.97]
    subject = scripted(*([t] for t in times))
    windows = Latency(2, 1, 0, 1, 0).take_turns([subject])
    assert windows == [[[0.97], [0.97]]]


def test_warm_up_ends_on_a_machine_that_never_settles() -> None:
    subject = scripted(*([float(t)] for t in 2.0 ** np.arange(50)))
    Latency(2, 1, 0, 1, 0).warm_up(subject)
    assert len(subject.asked) == 10


@pytest.mark.parametrize("options", [{"windows": 1}, {"calls": 0}, {"warmup_calls": 0}])
def test_too_little_to_time_is_an_error(options: dict[str, int]) -> None:
    with pytest.raises(UserError, match="at least 2 windows"):
        Latency(**{"windows": 5, "calls": 10, "window_s": 0, "warmup_calls": 1, "warmup_s": 0, **options})


def test_the_fastest_engine_is_found_and_every_candidate_told(make_subject: Callable[..., Subject]) -> None:
    slow, quick = make_subject(TakesToo(3)), make_subject(Takes(1))
    chosen, found = fastest([slow, quick], QUICK)
    assert chosen is quick
    assert by_name(found) == pytest.approx({"candidate_takes_too_ms": 3, "candidate_takes_ms": 1}, rel=0.05)
    assert slow.child.process.poll() is not None and quick.child.process.poll() is None
    quick.close()


def test_one_engine_alone_is_not_timed(make_subject: Callable[..., Subject]) -> None:
    subject = make_subject(Fails("leave"))
    assert fastest([subject], QUICK) == (subject, [])
