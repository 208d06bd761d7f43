"""Measures how far apart two cores are, by the time that a byte takes from one to the other and back."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time

TRIPS = 500  # round trips of one sample


class RoundTrips:
    """Times round trips between two cores, with a process that answers on the second one.

    Args:
        here: Number of the core on which this process asks.
        there: Number of the core on which the other process answers.

    Raises:
        RuntimeError: The other process ended during a round trip.
    """

    def __init__(self, here: int, there: int) -> None:
        self.here = here
        file = os.memfd_create("byte")
        os.truncate(file, 1)
        self.byte = mmap.mmap(file, 1)
        command = [sys.executable, "-I", "-S", __file__, str(file), str(there), str(os.getpid())]
        self.partner = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, pass_fds=[file])
        os.close(file)

    def __enter__(self) -> RoundTrips:
        return self

    def __exit__(self, *reason: object) -> None:
        self.partner.kill()  # it still waits if a window was interrupted
        self.partner.communicate()
        self.byte.close()

    def window(self, calls: int, seconds: float) -> list[float]:
        """Time round trips, including the steps of Python itself.

        Args:
            calls: Number of samples.
            seconds: Ignored. It is there because the windows of networks have it.

        Returns:
            Milliseconds of a round trip in each sample, which is the mean of TRIPS round trips.
        """
        assert self.partner.stdin
        self.partner.stdin.write(f"{(calls + 1) * TRIPS}\n")
        self.partner.stdin.flush()
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {self.here})
        try:
            taken = [self.round_trip() for _ in range(calls + 1)]
        finally:
            os.sched_setaffinity(0, allowed)
        return taken[1:]  # the first one includes waiting for the partner

    def round_trip(self) -> float:
        byte = self.byte
        began = time.perf_counter_ns()
        for _ in range(TRIPS):
            byte[0] = 1
            looks = 0
            while byte[0]:
                looks += 1
                if looks % 1_000_000 == 0 and self.partner.poll() is not None:
                    raise RuntimeError(
                        f"The process that answers on another core has ended with {self.partner.returncode}."
                    )
        return (time.perf_counter_ns() - began) / TRIPS / 1e6


def answer(file: int, core: int, asking: int) -> None:
    """Run the process on the other core.

    Each line on standard input says how many times to answer. Between lines, the process sleeps.

    Args:
        file: Descriptor of the file with the byte.
        core: Number of the core to run on.
        asking: Id of the process that asks. If that ends, so does this one.
    """
    os.sched_setaffinity(0, {core})
    byte = mmap.mmap(file, 1)
    for line in sys.stdin:
        for _ in range(int(line)):
            looks = 0
            while not byte[0]:
                looks += 1
                if looks % 1_000_000 == 0 and os.getppid() != asking:
                    return
            byte[0] = 0


if __name__ == "__main__":
    answer(*map(int, sys.argv[1:]))
