"""A sweep that is killed with SIGKILL at any moment, again and again, ends as one that nobody disturbed."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from qexp.tracking.store import read_records
from tests.commands import FEW_WINDOWS, TRAINED, fake
from tests.processes import started

pytestmark = pytest.mark.integration

SWEEP = [
    "-m", *TRAINED, *fake("Says", "answer=0"), *FEW_WINDOWS,
    "method=none,static", "batch_size=1,2", "outputs=outputs", "measure.parity=null",
]  # fmt: skip
KILLS = 2


def last_rows(folder: Path) -> dict[str, tuple[Any, ...]]:
    """What the last sweep below `folder` has of each key, but for times."""
    *_, last = sorted((folder / "outputs" / "sweeps").iterdir())
    records = read_records(last)
    assert len({record.key for record in records}) == len(records) and (last / "results.csv").exists()
    names = ("top1", "loss", "size_mb", "params_m")
    return {r.key: (r.label, r.status, r.artifact, *(r.metrics.get(name) for name in names)) for r in records}


@pytest.mark.thorough
def test_a_sweep_killed_at_random_moments_ends_as_one_that_was_not(tmp_path: Path) -> None:
    folders = [tmp_path / "undisturbed" / "here", tmp_path / "killed" / "here"]
    undisturbed = started(folders[0], SWEEP)
    began = time.monotonic()
    undisturbed.join(300)
    whole = time.monotonic() - began
    assert undisturbed.exitcode == 0, (folders[0] / "log.txt").read_text()

    moments = random.Random(0)
    for _ in range(KILLS):
        victim = started(folders[1], SWEEP)
        victim.join(moments.uniform(0.1, 0.6 * whole))
        victim.kill()
        victim.join()
    last = started(folders[1], SWEEP)
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


@pytest.mark.thorough
def test_two_sweeps_at_once_compute_each_cell_once(tmp_path: Path) -> None:
    both = [started(tmp_path, SWEEP) for _ in range(2)]
    for process in both:
        process.join(300)
    assert [process.exitcode for process in both] == [0, 0], (tmp_path / "log.txt").read_text()
    records = [record for folder in (tmp_path / "outputs" / "sweeps").iterdir() for record in read_records(folder)]
    assert len(records) == 8 and len({record.sweep for record in records}) == 2
    assert len([record for record in records if not record.reused]) == len({record.key for record in records}) == 4
    assert len(list((tmp_path / "outputs" / "baselines").glob("*/manifest.json"))) == 1
