"""Commands in processes of their own, which a test can kill."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

import compress
from qexp.measure import host_lock
from tests.commands import write_images

# In one list: the server from which all processes are forked imports it once.
IMPORTED = [
    "compress", "qexp.jobs.compress", "qexp.method.quantize.static", "qexp.method.none", "mlflow.tracking",
    "pytorch_lightning", "optuna",
]  # fmt: skip


class OwnLock(Callback):
    """Gives jobs a lock of their own, also in processes that a launcher starts: no time is checked there."""

    def __init__(self, file: str):
        self.file = Path(file)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        host_lock.HOST_LOCK = self.file


def own_lock(folder: Path) -> list[str]:
    """Overrides for jobs that another process runs, and for which nobody waits who measures on this machine."""
    node = "+hydra.callbacks.own_lock"
    return [f"{node}._target_={__name__}.OwnLock", f"{node}.file={folder / 'measure.lock'}"]


def command(folder: Path, words: list[str]) -> None:
    os.chdir(folder)
    host_lock.HOST_LOCK = folder / "measure.lock"  # no time is checked here
    sys.argv = ["compress.py", *words]
    with (folder / "log.txt").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    compress.main()


def started(folder: Path, words: list[str]) -> ForkServerProcess:
    """Start `compress.py` with these words in `folder`, where `pictures` are the images of `write_images`.

    What it prints goes to log.txt.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    if not (folder / "pictures").exists():
        write_images(folder / "pictures")
    process = context.Process(target=command, args=(folder, words))
    process.start()
    return process
