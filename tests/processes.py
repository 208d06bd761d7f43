"""Commands in processes of their own, which a test can kill."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import compress
from qexp.measure import base
from tests.commands import write_images

# In one list: the server from which all processes are forked imports it once.
IMPORTED = [
    "compress", "qexp.jobs.compress", "qexp.method.quantize.static", "qexp.method.none", "mlflow.tracking",
    "pytorch_lightning", "optuna",
]  # fmt: skip


def command(folder: Path, words: list[str]) -> None:
    os.chdir(folder)
    base.HOST_LOCK = folder / "measure.lock"  # no time is checked here
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
