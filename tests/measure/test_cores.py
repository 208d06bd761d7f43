"""A byte's way between two cores: its count and its time against the wall's clock, and what is left as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qexp.measure import round_trips
from qexp.measure.cores import watched
from qexp.measure.round_trips import TRIPS, RoundTrips

CORES = os.sched_getaffinity(0)
pytestmark = [pytest.mark.integration, pytest.mark.skipif(len(CORES) < 2, reason="one core")]


@pytest.fixture
def two() -> Iterator[RoundTrips]:
    with RoundTrips(*sorted(CORES)[:2]) as two:
        yield two


def test_as_many_round_trips_as_asked_for_in_the_time_that_passed(two: RoundTrips) -> None:
    for calls in (1, 10):
        began = time.perf_counter()
        taken = two.window(calls, 0)
        passed_ms = 1e3 * (time.perf_counter() - began)
        assert len(taken) == calls and min(taken) > 0
        assert TRIPS * sum(taken) <= passed_ms


def test_every_byte_is_answered_from_the_other_core(two: RoundTrips, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_trips, "TRIPS", 3)
    two.window(4, 0)
    assert two.byte[0] == 0 and two.partner.poll() is None
    assert os.sched_getaffinity(two.partner.pid) == {sorted(CORES)[1]}
    assert os.sched_getaffinity(0) == CORES


def test_the_other_end_ends_with_it_though_it_still_waits_for_a_byte() -> None:
    with pytest.raises(KeyboardInterrupt), RoundTrips(*sorted(CORES)[:2]) as two:
        assert two.partner.stdin
        two.partner.stdin.write("1\n")
        two.partner.stdin.flush()
        raise KeyboardInterrupt
    assert two.partner.returncode == -signal.SIGKILL


def test_the_other_end_ends_when_who_asks_was_killed() -> None:
    code = """if True:
        import os, signal
        from qexp.measure.round_trips import RoundTrips
        cores = RoundTrips(*sorted(os.sched_getaffinity(0))[:2])
        cores.partner.stdin.write("1\\n")
        cores.partner.stdin.flush()
        print(cores.partner.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert killed.returncode == -signal.SIGKILL
    partner, deadline = Path("/proc", killed.stdout.strip()), time.monotonic() + 60
    while partner.exists() and "State:\tZ" not in (partner / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_an_answer_that_never_comes_is_an_error(two: RoundTrips) -> None:
    two.window(1, 0)
    two.partner.kill()
    two.partner.wait()
    with pytest.raises(RuntimeError, match="has ended with -9"):
        two.round_trip()
    assert os.sched_getaffinity(0) == CORES


def test_one_thread_or_one_core_has_no_way_between_cores() -> None:
    with watched(1, None) as cores:
        assert cores.windows == []
    os.sched_setaffinity(0, {min(CORES)})
    try:
        with watched(2, None) as cores:
            assert cores.windows == []
    finally:
        os.sched_setaffinity(0, CORES)
    with watched(2, None) as cores:
        assert len(cores.windows) == 1
