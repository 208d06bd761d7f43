"""How a program starts and ends in little time, although it imports libraries that make millions of objects.

`benchmarks/sweep_cost.py` measures what each part gains.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import NoReturn


def own_folder_first() -> None:
    """Let modules in the current folder be found before all others, as `python -m` does."""
    if sys.path[0] not in ("", os.getcwd()):
        sys.path.insert(0, os.getcwd())


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """Keep the garbage collector from going through all that the libraries make while they are imported."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def import_for_good(name: str) -> ModuleType:
    """Import a module, and leave what it imports (torch above all) out of the garbage collector's later rounds.

    Args:
        name: Dotted name of the module. The collector runs again from here on.

    Returns:
        The module.
    """
    if name not in sys.modules:
        importlib.import_module(name)
        gc.freeze()
        # Some of the libraries' C++ parts print all that they find still there at the very end.
        atexit.register(gc.unfreeze)
    gc.enable()
    return sys.modules[name]


def end_at_once() -> NoReturn:
    """End a program that did all it had to, as multiprocessing ends its processes.

    Threads and exit handlers come to their end, but the interpreter does not look for garbage among all objects of all
    libraries.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)
