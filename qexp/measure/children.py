"""The measuring children of candidates: forked, started, or kept for the next candidate on the same engine."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

from qexp.engine.base import Engine
from qexp.launch import Child, Nursery
from qexp.measure import child as measuring_child


@dataclass(frozen=True)
class Limits:
    """The limits of one question to a measuring child.

    Attributes:
        timeout_s: Seconds that the answer may take.
        memory_mb: Resident memory that the child may hold, in MB, or None for no limit.
    """

    timeout_s: float
    memory_mb: float | None


def new_child(engine: Engine, threads: int, limits: Limits, nursery: Nursery | None = None) -> Child:
    """A child of the nursery, or one that imports the engine itself."""
    return Child(measuring_child.__name__, _target(engine), threads, limits.timeout_s, limits.memory_mb, nursery)


def forked_child(engine: Engine, threads: int, limits: Limits) -> Child:
    """A child of the engine's nursery where processes can be forked, or one that imports the engine itself."""
    return new_child(engine, threads, limits, NURSERIES.get(engine, threads) if sys.platform == "linux" else None)


def _target(engine: Engine) -> dict[str, Any]:
    return {"target": engine.target, "options": engine.options}


class Nurseries:
    """Keeps the nurseries of the `most` engines that were used last. They end with this process at the latest."""

    def __init__(self, most: int):
        self.most = most
        self.kept: dict[str, Nursery] = {}  # the most recently used is the last

    def get(self, engine: Engine, threads: int) -> Nursery | None:
        """The nursery of an engine, which is started if there is none, or None if it is busy with another child."""
        # A child looks for the files that it loads from the folder in which it was started.
        wanted = repr((engine.target, engine.options, threads, os.getcwd()))
        nursery = self.kept.pop(wanted, None)
        if nursery and not nursery.free and nursery.idle:
            nursery.stop()
            nursery = None
        self.kept[wanted] = found = nursery or Nursery(measuring_child.__name__, _target(engine), threads)
        spare = [name for name, kept in self.kept.items() if kept is not found and kept.idle]
        for name in spare[: max(0, len(self.kept) - self.most)]:
            self.kept.pop(name).stop()
        return found if found.free else None

    def stop(self) -> None:
        while self.kept:
            self.kept.popitem()[1].stop()


class PersistentChildren:
    """Keeps up to `most` children for later runs. They end with this process at the latest."""

    def __init__(self, most: int):
        self.most = most
        self.kept: dict[str, Child] = {}  # the most recently used child is the last

    def get(self, engine: Engine, threads: int, limits: Limits) -> Child:
        """Give the child with this engine, or start one if none is alive.

        A new child takes the place of the least recently used if there are too many.
        """
        # A child looks for the files that it loads from the folder in which it was started.
        wanted = repr((engine.target, engine.options, threads, limits, os.getcwd()))
        child = self.kept.pop(wanted, None)
        self.kept[wanted] = child if child and child.alive else new_child(engine, threads, limits)
        while len(self.kept) > self.most:
            self.kept.pop(next(iter(self.kept))).stop()
        return self.kept[wanted]

    def stop(self) -> None:
        while self.kept:
            self.kept.popitem()[1].stop()


PERSISTENT = PersistentChildren(most=2)  # for the baseline and the fastest fp32 engine
NURSERIES = Nurseries(most=3)  # each holds an engine's libraries in memory, up to half a GB
