"""Times are those of engines that take a known time.

Statistics are those of NumPy, the standard library and the binomial distribution.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qexp.artifact import Artifact
from qexp.measure import latency, timing
from qexp.measure.base import Context
from qexp.measure.candidate import Candidate
from qexp.measure.cores import Cores
from qexp.measure.device import HERE, Device
from qexp.measure.disturbance import DISTURBED
from qexp.measure.latency import Latency, speedup
from qexp.measure.timing import median_interval
from qexp.records import Measurement
from qexp.types import UserError
from tests import configured
from tests.measure.fake_engines import Fails, Sleeps, SlowStart, Takes, TakesToo

BRIEF = {"calls": 1, "window_s": 0, "warmup_calls": 1, "warmup_s": 0, "budget_s": 60, "resolution": 0}


def timed(**options: Any) -> Latency:
    """Turns of single calls, with intervals as they are measured, unless told otherwise."""
    return configured.measure("latency", **{**BRIEF, **options})


QUICK = timed(windows=7, calls=5, window_s=0.02, warmup_calls=3, warmup_s=0.01, budget_s=60)
MakeContext = Callable[..., Context]


def by_name(found: list[Measurement]) -> dict[str, float]:
    assert len({m.name for m in found}) == len(found)
    return {m.name: m.value for m in found}


def test_five_milliseconds_read_five_milliseconds(make_context: MakeContext) -> None:
    found = QUICK.measure(make_context(Takes(5)))
    values = by_name(found)
    assert values["latency_ms"] == values["latency_p50_ms"] == 5
    assert values["latency_ms_per_image"] == 2.5 and values["throughput_ips"] == 400, "two images per call"
    assert "speedup" not in values
    assert next(m for m in found if m.name == "latency_ms").unit == "ms"


def test_the_clock_is_that_of_the_wall(make_context: MakeContext) -> None:
    found = QUICK.measure(make_context(Sleeps(1)))
    samples = next(m.samples for m in found if m.name == "latency_ms")
    assert min(samples) >= 1 and len(samples) >= 7 * 5


def test_a_slow_first_call_is_seen_in_first_call_ms_only(make_context: MakeContext) -> None:
    values = by_name(QUICK.measure(make_context(SlowStart(load_ms=0, first_ms=250))))
    assert values["first_call_ms"] == 250
    assert values["latency_ms"] == values["latency_p99_ms"] == 1


def test_half_the_time_is_twice_as_fast(make_context: MakeContext) -> None:
    values = by_name(QUICK.measure(make_context(Takes(2), baseline=Takes(4))))
    assert values["latency_ms"] == 2
    assert values["speedup"] == values["speedup_low"] == values["speedup_high"] == 2


def test_the_best_fp32_engine_is_another_yardstick(make_context: MakeContext) -> None:
    context = make_context(Takes(2), baseline=Takes(8), best_fp32=TakesToo(5))
    values = by_name(QUICK.measure(context))
    assert values["speedup"] == 4 and values["speedup_vs_best_fp32"] == 2.5
    assert values["speedup_vs_best_fp32_low"] <= values["speedup_vs_best_fp32"] <= values["speedup_vs_best_fp32_high"]
    assert context.notes == {"speedup_vs_best_fp32": "the fastest fp32 engine here was takes_too"}


def test_the_baseline_itself_has_no_speedup(
    make_context: MakeContext, make_candidate: Callable[..., Candidate]
) -> None:
    context = make_context(Takes(1))
    context.baseline = make_candidate(Takes(1), context.candidate.artifact)
    assert context.candidates == [context.candidate]
    assert "speedup" not in by_name(QUICK.measure(context))


def test_a_simulated_format_has_no_latency(make_context: MakeContext, make_artifact: Callable[..., Artifact]) -> None:
    context = make_context(Fails("leave"), artifact=make_artifact(simulated=True))
    assert QUICK.measure(context) == [] and "no kernel computes in this format" in context.notes["latency_ms"]


@dataclass
class Scripted:
    """A candidate whose windows are given, with itself for an engine; `asked` collects who was asked in which order."""

    windows: Iterator[list[float]]
    name: str = "a"
    asked: list[str] = field(default_factory=list)
    batch: int = 4
    threads: int = 1
    process: int = -1
    device: Device = HERE
    artifact: Any = field(default_factory=lambda: SimpleNamespace(simulated=False))

    @property
    def identity(self) -> dict[str, str]:
        return {"engine": self.name}

    @property
    def engine(self) -> Scripted:
        return self

    def start(self) -> dict[str, float]:
        return {"load_ms": 70.0, "first_call_ms": 9.0}

    def window(self, calls: int, seconds: float) -> list[float]:
        self.asked.append(self.name)
        return next(self.windows)


def scripted(*windows: list[float], **values: Any) -> Any:
    return Scripted(iter(windows), **values)


def steady(name: str, ms: float, asked: list[str]) -> Any:
    """A candidate whose calls all take `ms`."""
    return Scripted(itertools.repeat([ms]), name, asked)


PLAIN = timed(windows=8)


def test_baseline_and_best_fp32_take_turns_with_the_candidate_and_both_ratios_are_exact() -> None:
    asked: list[str] = []
    context = Context(steady("int8", 2, asked), steady("eager", 9, asked), None, Path(), steady("best", 5, asked))
    values = by_name(PLAIN.measure(context))
    assert {values[f"speedup{end}"] for end in ("", "_low", "_high")} == {4.5}
    assert {values[f"speedup_vs_best_fp32{end}"] for end in ("", "_low", "_high")} == {2.5}
    assert asked[-24:] == ["int8", "eager", "best"] * 8
    assert context.notes["speedup_vs_best_fp32"] == "the fastest fp32 engine here was best"


def test_a_best_fp32_that_is_the_baseline_is_timed_once() -> None:
    asked: list[str] = []
    values = by_name(
        PLAIN.measure(
            Context(steady("int8", 2, asked), steady("eager", 9, asked), None, Path(), steady("eager", 9, asked))
        )
    )
    assert values["speedup"] == values["speedup_vs_best_fp32"] == 4.5
    assert asked[-16:] == ["int8", "eager"] * 8 and asked.count("eager") == 8 + 2  # two windows to warm up


def test_the_best_fp32_itself_has_no_speedup_over_it() -> None:
    asked: list[str] = []
    context = Context(steady("best", 5, asked), steady("eager", 9, asked), None, Path(), steady("best", 5, asked))
    values = by_name(PLAIN.measure(context))
    assert values["speedup"] == 1.8 and not [name for name in values if name.startswith("speedup_vs")]
    assert asked[-16:] == ["best", "eager"] * 8
    assert context.notes["speedup_vs_best_fp32"] == "the fastest fp32 engine here was best"


@pytest.mark.parametrize(
    ("windows", "budget_s", "candidates", "taken"),
    [(20, 9.5, 1, 10), (20, 3, 1, 7), (20, 100, 1, 20), (20, 9.5, 2, 7), (5, 0, 1, 5)],
)
def test_turns_end_when_their_time_is_over_but_seven_are_taken(
    windows: int, budget_s: float, candidates: int, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each window takes a second, by a clock that only windows move."""
    asked: list[str] = []
    monkeypatch.setattr(timing, "time", SimpleNamespace(monotonic=lambda: float(len(asked))))
    found = timed(windows=windows, budget_s=budget_s).take_turns([steady(str(i), 1, asked) for i in range(candidates)])
    assert [len(windows) for windows in found.windows] == [taken] * candidates and found.trusted


@dataclass
class Told:
    """Says of each turn whether it was disturbed, as it was told."""

    turns: Iterator[bool]
    reason: str = DISTURBED

    def begin(self) -> None: ...

    def disturbed(self) -> bool:
        return next(self.turns)


def test_disturbed_turns_are_taken_again() -> None:
    rules = timed(windows=8).rules
    told = itertools.chain([False, True, True, False, True], itertools.repeat(False))
    ours, theirs = (scripted(*[[0.0]] * 2, *([base + turn] for turn in range(11))) for base in (100.0, 200.0))
    found = rules.take_turns([ours.window, theirs.window], Told(told))
    kept = [0, 3, 5, 6, 7, 8, 9, 10]
    assert found.windows == [[[100.0 + turn] for turn in kept], [[200.0 + turn] for turn in kept]]
    assert found.trusted and found.disturbed == 3


def test_where_too_few_turns_are_quiet_all_are_given_and_nothing_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(timing, "time", SimpleNamespace(monotonic=lambda: float(len(asked))))
    told = Told(turn % 2 == 1 for turn in itertools.count())
    found = timed(windows=20, budget_s=9.5).rules.take_turns([steady("a", 1, asked).window], told)
    assert len(found.windows[0]) == 10 and found.disturbed == 5 and not found.trusted


def test_disturbed_numbers_are_shown_and_count_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "watch_of", lambda *candidates: Told(itertools.repeat(True)))
    context = Context(steady("int8", 2, []), steady("eager", 9, []), None, Path())
    found = timed(windows=8, budget_s=0, watch=True).measure(context)
    assert {m.kind for m in found} == {"disturbed"} and by_name(found)["speedup"] == 4.5
    assert context.notes["latency_ms"] == "7 of 7 turns were disturbed: other processes used the cores"


def test_statistics_are_those_of_the_standard_library() -> None:
    rng = np.random.default_rng(1)
    windows = [list(rng.lognormal(1, 0.3, size)) for size in (12, 30, 17, 5, 9, 21, 14)]
    found = QUICK.describe(windows, scripted())
    values, samples = by_name(found), [s for window in windows for s in window]
    medians = sorted(statistics.median(w) for w in windows)
    cuts = statistics.quantiles(samples, n=100, method="inclusive")  # cuts[k - 1] is the k-th percentile
    assert values == pytest.approx({
        "latency_ms": medians[3], "latency_low_ms": medians[0], "latency_high_ms": medians[6],
        "latency_ms_per_image": medians[3] / 4,
        "latency_mean_ms": math.fsum(samples) / 108, "latency_std_ms": statistics.stdev(samples),
        "latency_p50_ms": cuts[49], "latency_p90_ms": cuts[89], "latency_p99_ms": cuts[98],
        "load_ms": 70, "first_call_ms": 9, "throughput_ips": 4000 / values["latency_ms"],
        "latency_spread": (cuts[74] - cuts[24]) / values["latency_ms"],
    })  # fmt: skip
    assert next(m for m in found if m.name == "latency_ms").samples == tuple(samples)


def test_one_slow_window_does_not_move_the_latency() -> None:
    quiet, disturbed = [1.0] * 10, [50.0] * 1000
    assert by_name(QUICK.describe([quiet, disturbed, quiet], scripted()))["latency_ms"] == 1


@pytest.mark.parametrize(
    ("count", "ranks"),
    [(6, (1, 6)), (7, (1, 7)), (8, (1, 8)), (9, (2, 8)), (20, (6, 15))],  # of tables of the sign test
)
def test_the_interval_of_a_median_lies_between_two_order_statistics(count: int, ranks: tuple[int, int]) -> None:
    values = np.random.default_rng(count).permutation(np.arange(1.0, count + 1))  # each value is its rank
    assert median_interval(list(values)) == ranks
    assert median_interval(list(np.exp(values))) == pytest.approx(np.exp(ranks))  # whatever the distribution


@pytest.mark.parametrize("count", [2, 5])
def test_too_few_values_have_no_interval(count: int) -> None:
    assert median_interval([1.0] * count) is None
    assert [m.name for m in speedup("speedup", [2.0] * count, [1.0] * count)] == ["speedup"]


@pytest.mark.parametrize(("count", "lowest"), [(7, 1), (20, 6)])
def test_the_interval_holds_the_median_as_often_as_the_binomial_distribution_says(count: int, lowest: int) -> None:
    rng, trials = np.random.default_rng(count), 2000
    intervals = [median_interval(list(sample)) for sample in rng.lognormal(0, 1, (trials, count))]
    held = sum(interval is not None and interval[0] <= 1 <= interval[1] for interval in intervals) / trials
    exact = (
        1 - 2 * sum(math.comb(count, k) for k in range(lowest)) / 2**count
    )  # fewer than `lowest` values on one side of it
    assert exact > 0.95 and held >= 0.95
    assert held == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("windows", [7, 20])
def test_a_drift_of_the_machine_is_in_no_speedup(windows: int) -> None:
    rng, trials, held = np.random.default_rng(0), 400, 0
    for _ in range(trials):
        drift = rng.lognormal(0, 0.5, windows)  # both see it
        baseline, candidate = 4 * drift * rng.lognormal(0, 0.02, windows), 2 * drift * rng.lognormal(0, 0.02, windows)
        values = by_name(speedup("speedup", list(baseline), list(candidate)))
        held += values["speedup_low"] <= 2 <= values["speedup_high"]
        assert values["speedup"] == pytest.approx(2, rel=0.1)
        assert values["speedup_high"] / values["speedup_low"] < 1.2
    assert 0.95 * trials <= held < trials


def test_a_speedup_is_the_median_of_the_ratios_of_pairs() -> None:
    rng = np.random.default_rng(5)
    baseline, candidate = rng.lognormal(1, 0.2, 20), rng.lognormal(0, 0.2, 20)
    found = speedup("speedup_vs_best_fp32", list(baseline), list(candidate))
    ratios = sorted(b / c for b, c in zip(baseline, candidate, strict=True))
    assert by_name(found) == {
        "speedup_vs_best_fp32": (ratios[9] + ratios[10]) / 2,
        "speedup_vs_best_fp32_low": ratios[5], "speedup_vs_best_fp32_high": ratios[14],
    }  # fmt: skip
    assert sorted(found[0].samples) == ratios and {m.unit for m in found} == {"x"}


def test_windows_are_taken_in_turns() -> None:
    asked: list[str] = []
    candidates = [scripted(*[[1.0]] * 9, name=name, asked=asked) for name in "ab"]
    timed(windows=3).take_turns(candidates)
    assert asked[-6:] == list("ababab")


def test_warm_up_goes_on_until_two_windows_agree() -> None:
    times = [16.0, 8.0, 4.0, 2.0, 1.0, 0.98, 0.97, 0.97, 0.97]
    candidate = scripted(*([t] for t in times))
    assert timed(windows=2).take_turns([candidate]).windows == [[[0.97], [0.97]]]


def test_warm_up_ends_on_a_machine_that_never_settles() -> None:
    candidate = scripted(*([float(t)] for t in 2.0 ** np.arange(50)))
    timed(windows=2).rules.warm_up(candidate.window)
    assert len(candidate.asked) == 10


@pytest.mark.parametrize("options", [{"windows": 1}, {"calls": 0}, {"warmup_calls": 0}])
def test_too_little_to_time_is_an_error(options: dict[str, int]) -> None:
    with pytest.raises(UserError, match="at least 2 windows"):
        timed(**options)


def test_intervals_are_widened_by_what_two_processes_differ() -> None:
    ratios = [1.0, 1.1, 0.9, 1.2, 1.05, 0.95, 1.0]
    narrow, wide = (
        by_name(speedup("speedup", ratios, [1.0] * 7)),
        by_name(speedup("speedup", ratios, [1.0] * 7, resolution=0.25)),
    )
    assert (narrow["speedup_low"], narrow["speedup_high"]) == (0.9, 1.2)
    assert (wide["speedup_low"], wide["speedup_high"]) == pytest.approx((0.72, 1.5))
    assert narrow["speedup"] == wide["speedup"] == 1.0


PLACES = [180, 330, 190, 335, 175, 185, 180, 340, 182, 178]  # ns; all but three near each other


def placed(
    trips: list[int], most_round_trip_ns: float | None, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, float], dict[str, str]]:
    """A speed-up of 10 with the cores near each other, of 12 with them apart."""
    times = itertools.chain(trips[:1] * 2, trips)  # two windows to warm up
    trip: Any = SimpleNamespace(window=lambda calls, seconds: [next(times) / 1e6])
    monkeypatch.setattr(latency, "watched", lambda threads, most_ns: contextlib.nullcontext(Cores(trip, most_ns)))
    slow = itertools.chain([[20.0]] * 2, ([24.0 if trip > 250 else 20.0] for trip in trips))
    context = Context(scripted(*[[2.0]] * 12, threads=2), Scripted(slow, "eager"), None, Path())  # type: ignore[arg-type]
    found = timed(windows=len(trips), most_round_trip_ns=most_round_trip_ns).measure(context)
    return by_name(found), context.notes


def test_turns_with_the_cores_elsewhere_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    values, _ = placed(PLACES, 250, monkeypatch)
    assert values["speedup"] == values["speedup_low"] == values["speedup_high"] == 10
    assert values["latency_ms"] == 2 and values["core_round_trip_ns"] == pytest.approx(183.5)


def test_all_turns_count_where_nothing_is_asked_and_the_record_says_that_cores_were_moved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values, notes = placed(PLACES, None, monkeypatch)
    assert (values["speedup_low"], values["speedup"], values["speedup_high"]) == (10, 10, 12)
    assert (
        notes["core_round_trip_ns"]
        == "the cores were moved between turns: a byte's way between the cores and back took 175 to 340 ns"
    )
    _, notes = placed([180] * 10, None, monkeypatch)
    assert "core_round_trip_ns" not in notes


def test_too_few_turns_in_that_place_leave_the_time_out_and_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    values, notes = placed(PLACES[:8], 250, monkeypatch)
    assert set(values) == {"core_round_trip_ns"}
    assert notes["latency_ms"].startswith("most_round_trip_ns=250 held in 5 of 8 turns, 7 are needed: ")


def test_one_thread_has_no_place_and_the_record_says_so() -> None:
    context = Context(scripted(*[[2.0]] * 12, threads=1), scripted(*[[20.0]] * 12, name="eager"), None, Path())
    values = by_name(timed(windows=8, most_round_trip_ns=250).measure(context))
    assert values["speedup"] == 10 and "core_round_trip_ns" not in values
    assert context.notes["core_round_trip_ns"].startswith("not measured: it needs two threads")
