"""Lets a task run in a launcher's worker as it would in the process in which its command was started."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from qexp.types import UserError

Task = Callable[[DictConfig], Any]

# The files in conf/hydra/launcher have the plugins' names so that the plugins' schemas check them. Hydra warns about
# that, both in this process and in workers.
warnings.filterwarnings("ignore", message=r"\n'hydra/launcher/\w+' is validated against ConfigStore schema")


class Portable:
    """A task that restores the folder, the import path and the command line of its command when it is unpickled.

    Attributes:
        task: The task itself.
        away: Whether this object was unpickled, and so is in a worker.
    """

    away = False

    def __init__(self, task: Task):
        functools.update_wrapper(self, task)  # Hydra asks for its name and its file
        self.task = task

    def __reduce__(self) -> tuple[Any, ...]:
        return arrive, (os.getcwd(), sys.path, sys.argv), {"task": self.task, "away": True}

    def __call__(self, config: DictConfig) -> Any:
        if not self.away:
            return self.task(config)
        if "SUBMITIT_EXECUTOR" in os.environ:
            # Slurm sends this signal when it takes the job off its node, perhaps to queue it again. submitit ignores
            # it, and the job would then see its children die and record a failure.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        name = f"#{HydraConfig.get().job.num} "
        out, errors = (Named(stream, name) for stream in (sys.stdout, sys.stderr))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            return self.task(config)


def arrive(folder: str, path: list[str], argv: list[str]) -> Portable:
    """Take over the command's folder, import path and command line, so that the task's modules can be found.

    Unpickling calls this before it looks up those modules.

    Args:
        folder: Working directory of the command.
        path: Its `sys.path`.
        argv: Its `sys.argv`.

    Returns:
        A `Portable` whose attributes unpickling is about to set.

    Raises:
        UserError: This machine does not have the folder.
    """
    if not Path(folder).is_dir():
        raise UserError(
            f"{folder}, where the command was started, does not exist on {socket.gethostname()}; "
            "start it in a shared folder."
        )
    os.chdir(folder)
    sys.path[:] = [*path, *(place for place in sys.path if place not in path)]  # the user's modules are found first
    sys.argv[:] = argv
    return Portable.__new__(Portable)


class Named:
    """Writes whole lines to a stream, each with the job's name in front, since other jobs may write to it too."""

    def __init__(self, stream: TextIO, name: str):
        self.stream, self.name, self.begun = stream, name, ""

    def write(self, text: str) -> int:
        *lines, self.begun = (self.begun + text).split("\n")
        self.stream.write("".join(f"{self.name}{line}\n" for line in lines if line.strip()))
        return len(text)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.stream, attribute)
