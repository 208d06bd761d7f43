"""A command's task in a worker of a launcher: it runs there as it would in the process that the command was started in."""

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

# Files of conf/hydra/launcher have the plugins' names, so that the plugins' schemas check them; here and in workers.
warnings.filterwarnings("ignore", message=r"\n'hydra/launcher/\w+' is validated against ConfigStore schema")


class Portable:
    """A task that finds the folder, the modules and the command line of its command again when it is unpickled."""

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
            # Slurm takes the job off its node, maybe to queue it again. submitit ignores that, and the job would see its children die
            # and record a failure.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        name = f"#{HydraConfig.get().job.num} "
        out, errors = (Named(stream, name) for stream in (sys.stdout, sys.stderr))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            return self.task(config)


def arrive(folder: str, path: list[str], argv: list[str]) -> Portable:
    """Unpickling calls this before it looks up the modules that the task is made of."""
    if not Path(folder).is_dir():
        raise UserError(
            f"{folder}, where the command was started, does not exist on {socket.gethostname()}; start it in a shared folder."
        )
    os.chdir(folder)
    sys.path += [place for place in path if place not in sys.path]
    sys.argv[:] = argv
    return Portable.__new__(Portable)


class Named:
    """A stream that gets each line in one piece with the job's name in front, as other jobs may write to it too."""

    def __init__(self, stream: TextIO, name: str):
        self.stream, self.name, self.begun = stream, name, ""

    def write(self, text: str) -> int:
        *lines, self.begun = (self.begun + text).split("\n")
        self.stream.write("".join(f"{self.name}{line}\n" for line in lines if line.strip()))
        return len(text)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.stream, attribute)
