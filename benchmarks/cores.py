"""How far apart two cores are: the time in which a byte goes from one to the other and back, every second.

    uv run python benchmarks/cores.py [SECONDS]

A virtual machine's cores have no fixed place. Some tens of nanoseconds (Python's own steps included) say that they share a cache, several
hundred that they do not; where the figure changes, the host has moved them, and every network on two threads with them.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time

TRIPS = 500  # of one sample


class Cores:
    """The first two cores that this process may use. Errors: ValueError where there is only one."""

    def __init__(self) -> None:
        self.allowed = os.sched_getaffinity(0)
        if len(self.allowed) < 2:
            raise ValueError(f"Only core {min(self.allowed)} may be used; two are needed.")
        self.here, there = sorted(self.allowed)[:2]
        file = os.memfd_create("byte")
        os.truncate(file, 1)
        self.byte = mmap.mmap(file, 1)
        command = [sys.executable, __file__, "answer", str(file), str(there)]
        self.partner = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, pass_fds=[file])
        os.close(file)

    def __enter__(self) -> Cores:
        return self

    def __exit__(self, *reason: object) -> None:
        self.partner.communicate()  # which ends its input, and with that itself
        self.byte.close()

    def window(self, calls: int, seconds: float) -> list[float]:
        """Milliseconds of round trips, each the mean of TRIPS; as many as `calls`, however long they take (as a Window of Rules)."""
        assert self.partner.stdin
        self.partner.stdin.write(f"{(calls + 1) * TRIPS}\n")
        self.partner.stdin.flush()
        os.sched_setaffinity(0, {self.here})
        try:
            taken = [round_trips(self.byte) for _ in range(calls + 1)]
        finally:
            os.sched_setaffinity(0, self.allowed)
        return taken[1:]  # the first waited for the partner


def round_trips(byte: mmap.mmap) -> float:
    """Milliseconds of one, the mean of TRIPS."""
    began = time.perf_counter_ns()
    for _ in range(TRIPS):
        byte[0] = 1
        while byte[0]:
            pass
    return (time.perf_counter_ns() - began) / TRIPS / 1e6


def answer(file: int, core: int) -> None:
    """The other end: for each number on standard input so many answers, asleep between."""
    os.sched_setaffinity(0, {core})
    byte = mmap.mmap(file, 1)
    for line in sys.stdin:
        for _ in range(int(line)):
            while not byte[0]:
                pass
            byte[0] = 0


def main(seconds: float) -> None:
    with Cores() as cores:
        for second in range(round(seconds)):
            taken = sorted(cores.window(20, 0))
            print(f"{second:4} s  {1e6 * taken[10]:5.0f} ns there and back", flush=True)
            time.sleep(1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["answer"]:
        answer(int(sys.argv[2]), int(sys.argv[3]))
    else:
        main(float(sys.argv[1]) if sys.argv[1:] else 60)
