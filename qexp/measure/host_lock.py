"""The lock of this machine, which whoever measures on it holds."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from qexp.progress import doing
from qexp.types import command_line

# All users of a machine have to share the lock, whatever their TMPDIR.
HOST_LOCK = Path("/tmp" if os.name == "posix" else tempfile.gettempdir()) / "qexp-measure.lock"
PATIENCE_S = 2.0  # seconds after which whoever waits for it is told for whom


@contextlib.contextmanager
def alone_on_host() -> Iterator[None]:
    """Hold the lock of this machine for measurements, because two at the same time would disturb each other.

    Every user of the machine can take the lock, and the system frees it when its holder dies. Whoever waits for it is
    told who holds it.
    """
    lock = FileLock(HOST_LOCK, mode=0o666)
    try:
        lock.acquire(timeout=PATIENCE_S)
    except Timeout:
        print(f"  waiting for {_holder()} to end its measurement on this machine", flush=True)
        with doing("Waiting"):
            lock.acquire()
    try:
        _tell_holder()
        yield
    finally:
        lock.release()


def _tell_holder() -> None:
    """Write down who holds the lock. It cannot be in the lock itself, which is emptied by whoever waits for it."""
    file = HOST_LOCK.with_suffix(".json")
    about = {"process": os.getpid(), "command": command_line(), "since": f"{datetime.now():%H:%M:%S}"}
    with contextlib.suppress(OSError):  # only what others are told depends on it
        file.write_text(json.dumps(about))
        file.chmod(0o666)  # every user of the machine writes it in turn


def _holder() -> str:
    """Who holds the lock, in words."""
    try:
        about = json.loads(HOST_LOCK.with_suffix(".json").read_text())
        return f"process {about['process']} (since {about['since']}: {about['command']})"
    except (OSError, ValueError, KeyError):
        return "another process"
