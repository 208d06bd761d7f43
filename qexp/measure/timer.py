"""Compares the speed of two artifacts, for methods that search until a network is fast enough."""

from __future__ import annotations

import statistics
from typing import Any

from qexp.artifact import Artifact
from qexp.engine.base import Engine
from qexp.measure.base import Turns, ready
from qexp.measure.candidate import Candidate
from qexp.measure.children import Limits
from qexp.measure.host_lock import alone_on_host
from qexp.measure.machine import place


class PairedTimer:
    """Times pairs of artifacts on one engine, each in a child process of its own.

    Args:
        engine: Engine that runs both artifacts.
        turns: How they are timed in turns.
        batch_size: Images per call.
        threads: Threads of the engine.
        timeout_s: Seconds that one answer of a child may take.
        memory_mb: Resident memory that a child may hold, in MB, or None for no limit.
    """

    def __init__(
        self,
        engine: Engine,
        turns: Turns,
        batch_size: int,
        threads: int,
        timeout_s: float,
        memory_mb: float | None,
    ):
        self.engine, self.turns, self.batch_size, self.threads = engine, turns, batch_size, threads
        self.limits = Limits(timeout_s, memory_mb)

    @property
    def options(self) -> dict[str, Any]:
        """What decides the answers: the engine, how it is timed, the batch size, the threads, and the machine."""
        asked = {"engine": self.engine, "turns": self.turns, "batch_size": self.batch_size, "threads": self.threads}
        return {**asked, "place": place()}

    def speedup(self, candidate: Artifact, reference: Artifact) -> float:
        """Measure how many times as fast as the reference a candidate is: the median ratio over pairs of windows."""
        self.engine.check_machine()
        lowered = [self.engine.lower(artifact, self.batch_size, self.threads) for artifact in (candidate, reference)]
        candidates = [
            Candidate(artifact, self.engine, self.batch_size, self.threads, self.limits) for artifact in lowered
        ]
        with alone_on_host():
            try:
                ready(candidates)
                taken = self.turns.take_turns(candidates).windows
            finally:
                for each in candidates:
                    each.close()
        ours, theirs = ([statistics.median(window) for window in windows] for windows in taken)
        return statistics.median(b / c for b, c in zip(theirs, ours, strict=True))
