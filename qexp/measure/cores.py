"""Where the cores were while networks took turns, and which turns count.

The cores of a virtual machine have no fixed place: the host moves them between cores that share a cache and cores that
do not. That changes the time of every network on two threads, but not by the same factor, so comparing networks pair by
pair does not make up for it.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Iterator

from qexp.measure.round_trips import RoundTrips
from qexp.measure.timing import LEAST_WINDOWS, Window
from qexp.metrics import METRICS
from qexp.records import Measurement

MOVED = 1.5  # cores have moved if a round trip takes more than this times the shortest

Windows = list[list[list[float]]]  # milliseconds of single calls, by network and turn


class Cores:
    """Judges turns by how long a byte takes from the first core to the second and back.

    Args:
        trips: Times the round trips. None for one thread or one core, or if the system does not let a process choose
            its core.
        most_ns: Nanoseconds that a round trip may take at most in a turn that counts. None lets all turns count.
    """

    def __init__(self, trips: RoundTrips | None, most_ns: float | None):
        self.trips, self.most_ns = trips, most_ns

    @property
    def windows(self) -> list[Window]:
        """What has to take its turns after all networks have taken theirs."""
        return [self.trips.window] if self.trips else []

    @property
    def processes(self) -> list[int]:
        """Ids of the processes that take part in what has to take its turns."""
        return [os.getpid(), *([self.trips.partner.pid] if self.trips else [])]

    def judge(self, taken: Windows, notes: dict[str, str]) -> tuple[Windows, list[Measurement]]:
        """Keep the turns that count.

        Args:
            taken: The turns of all networks, followed by those of `windows`.
            notes: Gets a note if the cores were moved, if too few turns count, or if nothing could be measured.

        Returns:
            The turns of the networks that count (none if they are too few), and the round trip as a measurement.
        """
        if not self.trips:
            if self.most_ns is not None:
                missing = "not measured: it needs two threads, two cores and Linux; every turn counts"
                notes["core_round_trip_ns"] = missing
            return taken, []
        *networks, own = taken
        trips = [1e6 * statistics.median(window) for window in own]
        counted = self.counted(trips, notes)
        found = METRICS["core_round_trip_ns"].of(statistics.median(trips), samples=tuple(trips))
        return [[windows[turn] for turn in counted] for windows in networks], [found]

    def counted(self, trips: list[float], notes: dict[str, str]) -> list[int]:
        """Choose the turns that count.

        Args:
            trips: Nanoseconds of a round trip, by turn.
            notes: Gets a note if the cores were moved, or if too few turns count.

        Returns:
            Numbers of the turns that count, or an empty list if they are too few.
        """
        way = f"a byte's way between the cores and back took {min(trips):.0f} to {max(trips):.0f} ns"
        if max(trips) > MOVED * min(trips):
            notes["core_round_trip_ns"] = f"the cores were moved between turns: {way}"
        if self.most_ns is None:
            return list(range(len(trips)))
        counted = [turn for turn, trip in enumerate(trips) if trip <= self.most_ns]
        if len(counted) >= LEAST_WINDOWS:
            return counted
        held = f"most_round_trip_ns={self.most_ns:g} held in {len(counted)} of {len(trips)} turns"
        wanted = f"{LEAST_WINDOWS} are needed: {way}"
        notes["latency_ms"] = f"{held}, {wanted}; raise windows and budget_s, or raise most_round_trip_ns"
        return []


@contextlib.contextmanager
def watched(threads: int, most_ns: float | None) -> Iterator[Cores]:
    """Watch the cores while networks take turns.

    Args:
        threads: Threads of the networks.
        most_ns: Nanoseconds that a round trip may take at most, or None.

    Yields:
        The judge of the turns.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if threads < 2 or len(allowed) < 2:
        yield Cores(None, most_ns)
        return
    with RoundTrips(*sorted(allowed)[:2]) as trips:
        yield Cores(trips, most_ns)
