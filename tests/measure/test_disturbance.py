"""Whether processes were disturbed is told by processes that share a core, or have one each."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from qexp.measure import disturbance
from qexp.measure.disturbance import Watch, free_cores, of_cores, used_by

pytestmark = [pytest.mark.integration, pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")]
SPIN = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); print(flush=True)\nwhile True: pass"


@contextmanager
def spinning(core: int) -> Iterator[int]:
    """A process that computes without end on one core."""
    with subprocess.Popen([sys.executable, "-S", "-c", SPIN, str(core)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout and process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


def test_two_processes_on_one_core_wait_for_each_other() -> None:
    core = min(os.sched_getaffinity(0))
    with spinning(core) as one, spinning(core) as other:
        watch = Watch(lambda: [one], threads=1, cores=1)
        before, began = [used_by(one), used_by(other)], time.monotonic()
        assert watch.disturbed() is None, "it is too early to tell"
        time.sleep(1)
        wall, after = time.monotonic() - began, [used_by(one), used_by(other)]
        assert watch.disturbed()
    for (ran, waited), (ran_before, waited_before) in zip(after, before, strict=True):
        assert ran - ran_before + waited - waited_before == pytest.approx(wall, abs=0.05)  # it did nothing else
        assert ran - ran_before < 0.6 * wall


def test_a_process_that_only_sleeps_is_disturbed_only_where_its_threads_need_what_others_take() -> None:
    core = min(os.sched_getaffinity(0))
    watches = {cores: Watch(lambda: [os.getpid()], threads=1, cores=cores) for cores in (1, 1000)}
    with spinning(core):
        for watch in watches.values():
            watch.begin()
        time.sleep(0.5)
        assert watches[1].disturbed() and not watches[1000].disturbed()


def test_the_cores_are_as_busy_as_what_runs_on_them() -> None:
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as running:
        for core in cores:
            running.enter_context(spinning(core))
        before, began = of_cores(), time.monotonic()
        time.sleep(0.5)
        busy = sum(of_cores()) - sum(before)
        assert busy == pytest.approx(len(cores) * (time.monotonic() - began), rel=0.2)
        free = free_cores(0.3)
        assert free is not None and free < 0.2 * len(cores)


def test_where_nothing_tells_nothing_is_disturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disturbance, "PROC", tmp_path)
    watch = Watch(lambda: [os.getpid()], threads=1, cores=1)
    watch.begin()
    assert not watch.disturbed() and free_cores(0) is None
