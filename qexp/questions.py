"""What a process that qexp.launch started is asked, and its end where nobody can ask any more."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, TextIO


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


def private_output() -> TextIO:
    """A copy of the standard output for answers alone, since libraries may print to that itself."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def tell(answer: dict[str, Any], answers: TextIO) -> None:
    print(json.dumps(answer), file=answers, flush=True)


def told(function: Callable[..., Any], **arguments: Any) -> tuple[dict[str, Any], Any]:
    """Call a function, and give the answer to the parent (the message if it fails) and what the function returned."""
    try:
        result = function(**arguments)
        return result if isinstance(result, dict) else {}, result
    except MemoryError:
        return {"error": "out of memory: an allocation was refused"}, None
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {str(error)[:500]}"}, None
