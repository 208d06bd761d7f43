"""Watches what is timed on a device, by its keeper."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from qexp.device.connection import Keeper
from qexp.measure.disturbance import DISTURBED
from qexp.measure.throttling import THROTTLED


class RemoteWatch:
    """Watches processes on a device, by its keeper.

    Args:
        keeper: Gives the keeper there.
        processes: Gives the ids of the processes there.
        threads: Threads of each.
    """

    def __init__(self, keeper: Callable[[], Keeper], processes: Callable[[], Iterable[int]], threads: int):
        self.keeper, self.processes, self.threads = keeper, processes, threads
        self.throttled = False

    @property
    def reason(self) -> str:
        return THROTTLED if self.throttled else DISTURBED

    def begin(self) -> None:
        self.keeper().ask("watch", processes=[*self.processes()], threads=self.threads)

    def disturbed(self) -> bool | None:
        told = self.keeper().ask("disturbed")
        self.throttled |= told.get("throttled") is True
        found = told.get("disturbed")
        return None if found is None else found is not False or told.get("throttled") is True
