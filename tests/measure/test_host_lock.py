"""Never two measurements at once on one machine: the lock is held, freed by a crash, and the same for everyone."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from qexp.launch import ChildFailed
from qexp.measure import host_lock
from qexp.measure.base import Context, Measure, ranking, run_measures
from qexp.measure.candidate import Candidate
from qexp.measure.host_lock import alone_on_host
from qexp.measure.timing import Taken
from qexp.records import Measurement
from tests.measure.conftest import is_free, measuring_children
from tests.measure.fake_engines import Fails, Fake

pytestmark = pytest.mark.integration

HOLD = """
import sys, time
from pathlib import Path
from qexp.measure import host_lock
from qexp.measure.timing import Taken
host_lock.HOST_LOCK = Path(sys.argv[1])
with host_lock.alone_on_host():
    print("held", flush=True)
    time.sleep(3600)
"""


@dataclass
class LooksAtLock(Measure):
    seen_free: bool | None = None
    seen_children: int = 0

    def measure(self, context: Context) -> list[Measurement]:
        self.seen_free, self.seen_children = is_free(), len(measuring_children())
        return [Measurement("answer", 42, "x")]

    def take_turns(self, candidates: list[Candidate]) -> Taken:
        self.seen_free = is_free()
        return Taken([[[1.0]] for _ in candidates])


class StartsChild(Measure):
    def measure(self, context: Context) -> list[Measurement]:
        context.candidate.start()
        return []


def test_measurements_hold_the_lock_and_end_their_children(make_context: Callable[..., Context]) -> None:
    context, look = make_context(Fake(), baseline=Fake(), best_fp32=Fake()), LooksAtLock()
    assert [m.value for m in run_measures({"child": StartsChild(), "look": look}, context)] == [42]
    assert look.seen_free is False and is_free()
    assert look.seen_children == 3 and not measuring_children()


def test_a_failed_measurement_frees_the_lock_and_ends_its_child(make_context: Callable[..., Context]) -> None:
    context = make_context(Fails("error"))
    with pytest.raises(ChildFailed, match="wrong colour"):
        run_measures({"child": StartsChild()}, context)
    assert is_free() and not measuring_children()


def test_candidates_are_timed_under_the_lock(make_candidate: Callable[..., Candidate]) -> None:
    look = LooksAtLock()
    ranking({"one": make_candidate(Fake()), "other": make_candidate(Fake())}, look, {})
    assert look.seen_free is False and is_free()


def test_two_processes_never_measure_at_once_and_a_crash_frees_the_lock() -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(host_lock.HOST_LOCK)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert other.stdout and other.stdout.readline() == b"held\n"
    assert not is_free()
    other.send_signal(signal.SIGKILL)
    other.wait()
    other.stdout.close()
    assert is_free()
    with alone_on_host():
        assert not is_free()


def test_every_user_may_take_the_lock() -> None:
    before = os.umask(0o077)
    try:
        with alone_on_host():
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE(host_lock.HOST_LOCK.stat().st_mode) == 0o666


def test_the_lock_is_the_same_whatever_the_folder_for_temporary_files(tmp_path: Path) -> None:
    places = {
        subprocess.run(
            [sys.executable, "-c", "from qexp.measure import host_lock; print(host_lock.HOST_LOCK)"],
            env={**os.environ, "TMPDIR": folder},
            cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
        ).stdout
        for folder in ("/tmp", str(tmp_path))
    }  # fmt: skip
    assert len(places) == 1


def test_who_waits_is_told_for_whom(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(host_lock, "PATIENCE_S", 0.1)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(host_lock.HOST_LOCK)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as other:
        assert other.stdout and other.stdout.readline() == b"held\n"
        threading.Timer(1, other.kill).start()
        with alone_on_host():
            told = capsys.readouterr().out
            assert host_lock._holder().startswith(f"process {os.getpid()} ")
    assert re.fullmatch(
        rf"  waiting for process {other.pid} \(since \d\d:\d\d:\d\d: python -c .*\) to end its measurement on this "
        r"machine\n", told,
    )  # fmt: skip
