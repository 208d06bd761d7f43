"""A sweep that is killed with SIGKILL at any moment, again and again, ends as one that nobody disturbed."""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import time
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

import compress
from qexp.measure import base
from qexp.tracking.store import read_records
from tests.commands import FEW_WINDOWS, fake, write_images

SWEEP = [
    "-m", "data=folder", "data.root=pictures", "data.image_size=16", "data.channels=1", "data.calibration_images=16", "model=resnet8",
    "recipe.epochs=1", "recipe.batch_size=8", "trainer=cpu", "train_missing=true", *fake("Says", "answer=0"), *FEW_WINDOWS,
    "method=none,static", "batch_size=1,2", "outputs=outputs", "measure.parity=null",
]  # fmt: skip
KILLS = 5


def sweep(folder: Path) -> None:
    os.chdir(folder)
    base.HOST_LOCK = folder / "measure.lock"  # no time is checked here
    sys.argv = ["compress.py", *SWEEP]
    with (folder / "log.txt").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    compress.main()


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    """Of processes that need not import everything anew."""
    made = multiprocessing.get_context("forkserver")
    methods = ["qexp.method.static", "qexp.method.none"]
    made.set_forkserver_preload(["compress", "qexp.jobs.compress", *methods, "mlflow.tracking", "pytorch_lightning"])
    return made


def started(context: ForkServerContext, folder: Path) -> ForkServerProcess:
    process = context.Process(target=sweep, args=(folder,))
    process.start()
    return process


def last_rows(folder: Path) -> dict[str, tuple[Any, ...]]:
    """What the last sweep below `folder` has of each key, but for times."""
    *_, last = sorted((folder / "outputs" / "sweeps").iterdir())
    records = read_records(last)
    assert len({record.key for record in records}) == len(records) and (last / "results.csv").exists()
    names = ("top1", "loss", "size_mb", "params_m")
    return {r.key: (r.label, r.status, r.artifact, *(r.metrics.get(name) for name in names)) for r in records}


def test_a_sweep_killed_at_random_moments_ends_as_one_that_was_not(context: ForkServerContext, tmp_path: Path) -> None:
    folders = [tmp_path / "undisturbed" / "here", tmp_path / "killed" / "here"]
    for folder in folders:
        write_images(folder / "pictures")
    undisturbed = started(context, folders[0])
    began = time.monotonic()
    undisturbed.join(300)
    whole = time.monotonic() - began
    assert undisturbed.exitcode == 0, (folders[0] / "log.txt").read_text()

    moments = random.Random(0)
    for _ in range(KILLS):
        victim = started(context, folders[1])
        victim.join(moments.uniform(0.1, 0.6 * whole))
        victim.kill()
        victim.join()
    last = started(context, folders[1])
    last.join(300)
    log = (folders[1] / "log.txt").read_text()
    assert last.exitcode == 0 and "damaged" not in log and "Traceback" not in log, log

    expected, found = (last_rows(folder) for folder in folders)
    assert found == expected and len(found) == 4
    client = MlflowClient(f"sqlite:///{folders[1] / 'outputs' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("qexp").experiment_id])
    measured = [run for run in runs if run.data.tags["qexp.kind"] == "compress"]
    assert sorted(run.data.tags["qexp.key"] for run in measured) == sorted(found), "each once"
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_two_sweeps_at_once_compute_each_cell_once(context: ForkServerContext, tmp_path: Path) -> None:
    write_images(tmp_path / "pictures")
    both = [started(context, tmp_path) for _ in range(2)]
    for process in both:
        process.join(300)
    assert [process.exitcode for process in both] == [0, 0], (tmp_path / "log.txt").read_text()
    records = [record for folder in (tmp_path / "outputs" / "sweeps").iterdir() for record in read_records(folder)]
    assert len(records) == 8 and len({record.sweep for record in records}) == 2
    assert len([record for record in records if not record.reused]) == len({record.key for record in records}) == 4
    assert len(list((tmp_path / "outputs" / "baselines").glob("*/manifest.json"))) == 1
