"""What other processes and the host took of the cores while something was timed.

qexp.deploy copies this file to devices, so it needs the standard library alone. Where the system does not tell (it does
on Linux), nothing counts as disturbed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

DISTURBED = "other processes used the cores"
PROC = Path("/proc")
SEEN_S = 0.2  # seconds after which it can be told, since the system counts the time of cores in steps of 10 ms
MOST_TAKEN = 0.2  # cores that others may take of those that the threads need
# Share of the time for which the threads may wait for a core that others use. Even where one core is free for each,
# threads wait for some milliseconds until they are moved to it.
MOST_WAITED = 0.15


class Watch:
    """Tells whether processes that are timed were disturbed.

    They were if others left them fewer cores than they have threads, if their threads had to wait for a core while
    others ran, or if the host of a virtual machine ran something else meanwhile. Threads also wait for each other,
    which is the engine's own affair, so that they count as waiting for others only as long as others ran.

    Args:
        processes: Gives the ids of the processes that are timed, or of those that time them.
        threads: Threads of each. They are timed one after the other.
        cores: Cores that they may use.
    """

    reason = DISTURBED

    def __init__(self, processes: Callable[[], Iterable[int]], threads: int, cores: int):
        self.processes, self.spare = processes, max(0, cores - threads)
        self.begin()

    def begin(self) -> None:
        """Count from now on."""
        self._before = self._now()

    def disturbed(self) -> bool | None:
        """Whether the processes were disturbed since `begin`. None: it is too early to tell."""
        before, now = self._before, self._now()
        if before is None or now is None:
            return False
        wall, waited, own, busy, stolen = (after - first for after, first in zip(now, before, strict=True))
        if wall < SEEN_S:
            return None
        others = max(0.0, busy - own)
        lost = min(waited, others) + stolen
        return others / wall - self.spare > MOST_TAKEN or lost / wall > MOST_WAITED

    def _now(self) -> tuple[float, float, float, float, float] | None:
        """Seconds so far: of the clock, that the processes waited and ran, that the cores were busy and stolen."""
        try:
            used = [used_by(process) for process in self.processes()]
            busy, stolen = of_cores()
        except (OSError, ValueError, IndexError):
            return None
        return time.monotonic(), sum(waited for _, waited in used), sum(ran for ran, _ in used), busy, stolen


def used_by(process: int) -> tuple[float, float]:
    """Seconds that the threads of a process have run, and for which they waited for a core.

    Raises:
        OSError: There is no such process, or the system does not tell.
    """
    ran = waited = 0
    for thread in os.listdir(PROC / str(process) / "task"):
        try:
            figures = (PROC / str(process) / "task" / thread / "schedstat").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            if not (PROC / "self" / "schedstat").exists():
                raise
            continue  # the thread has just ended
        ran, waited = ran + int(figures[0]), waited + int(figures[1])
    return ran / 1e9, waited / 1e9


def of_cores() -> tuple[float, float]:
    """Seconds for which the cores of this process's affinity were busy, and for which the host ran something else.

    Raises:
        OSError, IndexError: The system does not tell.
    """
    tick = os.sysconf("SC_CLK_TCK")
    busy = stolen = 0
    for line in (PROC / "stat").read_text().splitlines():
        name, *values = line.split()
        if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in os.sched_getaffinity(0):
            user, nice, system, _, _, interrupts, soft = map(int, values[:7])
            busy += user + nice + system + interrupts + soft
            stolen += int(values[7])
    return busy / tick, stolen / tick


def free_cores(seconds: float = 0.2) -> float | None:
    """How many of the cores of this process nobody uses, seen for so many seconds. None where nothing tells."""
    try:
        before = of_cores()
        began = time.monotonic()
        time.sleep(seconds)
        after = of_cores()
    except (OSError, ValueError, IndexError, AttributeError):
        return None
    used = (sum(after) - sum(before)) / (time.monotonic() - began)
    return max(0.0, len(os.sched_getaffinity(0)) - used)
