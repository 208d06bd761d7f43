"""What a process that qexp.launch started is asked, and its end where nobody can ask any more."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any


def questions() -> Iterator[dict[str, Any]]:
    """The questions of the parent, one after the other.

    When the parent is gone, however it ended, this process and all that it has started are killed at once. Otherwise a
    compiler or a network would go on for minutes, beside whatever is measured next.
    """
    asked: SimpleQueue[str] = SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            asked.put(line)
        with contextlib.suppress(ProcessLookupError):  # where it is not the first of a group, as the parent makes it
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(1)

    # It waits in the system, which disturbs nothing that is timed.
    threading.Thread(target=read, daemon=True).start()
    return iter(lambda: json.loads(asked.get()), None)
