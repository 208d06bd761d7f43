"""A process that has imported what its children need, and is forked for each of them.

A child is then there in milliseconds instead of seconds, and as fresh as if it had imported everything itself. Where
forking is not safe, because what was imported has started threads, this process becomes the only child.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np

PAGE = os.sysconf("SC_PAGE_SIZE")
POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14
PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux
Run = tuple[int, int]  # address and bytes


def main() -> None:
    """Prepare a child, then answer whoever is at the other end of the socket until that is closed.

    The arguments of the program are the socket's number, the name of a module and the argument of its function
    `prepared`, as JSON. That function gives what its function `serve` takes, which is the child. A message with three
    descriptors asks for a child with these as its standard input, output and error. The answer is the child's id, or
    this process's own if it is the child from now on. A message `{"wait": id}` or `{"poll": id}` asks how a child has
    ended, or whether.
    """
    # A thread could not watch the parent while libraries are imported, since threads make forking unsafe.
    ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
    parent = socket.socket(fileno=int(sys.argv[1]))
    module = importlib.import_module(sys.argv[2])
    before = _threads()
    prepared = module.prepared(**json.loads(sys.argv[3]))
    runs = _to_map_again() if _threads() == before else None
    gc.freeze()  # otherwise the collector of each child would copy all pages with objects
    while True:
        message, streams, _, _ = socket.recv_fds(parent, 4096, 3)
        if not message:
            os._exit(0)
        if not streams:
            answer: Any = _end_of(**json.loads(message))
        elif runs is not None and (answer := os.fork()):
            os.setpgid(answer, answer)
            for stream in streams:
                os.close(stream)
        else:
            if runs is None:
                parent.send(json.dumps(os.getpid()).encode())
            else:
                os.setpgid(0, 0)
                populate(runs)
            parent.close()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            module.serve(prepared)
            os._exit(0)
        parent.send(json.dumps(answer).encode())


def _end_of(wait: int = 0, poll: int = 0) -> int | None:
    """The exit code of a child, negative for a signal, or None as long as it has not ended."""
    ended, status = os.waitpid(wait or poll, 0 if wait else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _to_map_again() -> list[Run] | None:
    """What a fork leaves out, or None where the system cannot tell it or map it again (Linux before 5.14)."""
    try:
        runs = resident()
    except OSError:
        return None
    return runs if populate(runs) else None


def resident() -> list[Run]:
    """The parts of mapped files that are in the memory of this process."""
    runs: list[Run] = []
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        for line in Path("/proc/self/maps").read_text().splitlines():
            span, rights, _, _, inode, *_ = line.split()
            if inode == "0" or "r" not in rights:
                continue
            first, last = (int(address, 16) // PAGE for address in span.split("-"))
            pagemap.seek(8 * first)
            there = np.frombuffer(pagemap.read(8 * (last - first)), np.uint64) >> np.uint64(63)
            edges = np.flatnonzero(np.diff(there.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
            runs += [(int(first + start) * PAGE, int(end - start) * PAGE) for start, end in edges]
    return runs


def populate(runs: list[Run]) -> bool:
    """Map again what a fork leaves out: pages of files, which are otherwise mapped when they are first touched.

    They would then count as memory of the network, although the engine's import has touched them.

    Returns:
        Whether all of them are mapped now.
    """
    madvise = ctypes.CDLL(None).madvise
    failed = [madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), POPULATE_READ) for start, length in runs]
    return not any(failed)


if __name__ == "__main__":
    main()
