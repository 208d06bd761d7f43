"""The same sweep with another launcher gives the same rows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient

import compress
from qexp.measure import host_lock
from qexp.tracking.store import read_records
from tests.commands import CHEAP, PRETEND, TRAINED, RunCommand, fake, write_images
from tests.processes import own_lock

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
JOBS = ["+engine.answer=0,2", "method=none,static", "batch_size=2"]
Rows = dict[str, tuple[Any, ...]]


def words(folder: Path, launcher: str, *more: str) -> list[str]:
    """The command line of a sweep whose jobs all need a baseline, which one of them has to train."""
    places = ["outputs=outputs", f"hydra/launcher={launcher}", *own_lock(folder)]
    return ["-m", *TRAINED, *fake("Says"), *CHEAP, "threads=1", *places, *more]


def sweep(folder: Path, launcher: str, *more: str) -> None:
    """The sweep in this process, started in `folder`."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_lock, "HOST_LOCK", folder / "measure.lock")
        patch.setenv("OMP_NUM_THREADS", "1")  # a training ends with the same weights in every process
        patch.setattr(sys, "argv", ["compress.py", *words(folder, launcher, *more)])
        patch.chdir(folder)
        torch.set_num_threads(1)
        compress.main()
    torch.set_num_threads(threads)


def command(folder: Path, launcher: str, *more: str) -> str:
    """The sweep as a command started in `folder`, which is not that of the program; what it printed."""
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, str(ROOT / "compress.py"), *words(folder, launcher, *more)]
    ended = subprocess.run(line, cwd=folder, env=surroundings, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def rows(folder: Path) -> Rows:
    """What the one sweep below `folder` has of each key, but for times."""
    (made,) = (folder / "outputs" / "sweeps").iterdir()
    assert (made / "results.csv").exists()
    records = read_records(made)
    assert len({record.key for record in records}) == len(records)
    assert {tuple(record.command.split()[:3]) for record in records} == {("python", "compress.py", "-m")}
    return {r.key: (r.label, r.status, r.reason, r.metrics["top1"], r.metrics["size_mb"]) for r in records}


def kinds(folder: Path) -> list[str]:
    """What MLflow has of the sweep below `folder`."""
    client = MlflowClient(f"sqlite:///{folder / 'outputs' / 'mlflow.db'}")
    return [
        run.data.tags["qexp.kind"] for run in client.search_runs([client.get_experiment_by_name("qexp").experiment_id])
    ]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """All rows, by the basic launcher."""
    folder = tmp_path_factory.mktemp("basic")
    write_images(folder / "pictures")
    sweep(folder, "basic", "tracking=none", *JOBS)
    made = rows(folder)
    assert (
        len(made) == 4
        and {row[1] for row in made.values()} == {"finished"}
        and {row[3] for row in made.values()} == {0, 0.5}
    )
    return made


@pytest.mark.thorough
def test_joblib_gives_the_same_rows(expected: Rows, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "pictures")
    sweep(tmp_path, "joblib", *JOBS)
    assert rows(tmp_path) == expected
    assert sorted(kinds(tmp_path)) == ["compress"] * 4 + ["sweep", "train"], "one training, one summary"
    printed, errors = capfd.readouterr()
    lines = [line for line in printed.splitlines() if line.startswith("#")]
    assert {line.split()[0] for line in lines if "  finished in" in line} == {f"#{number}" for number in range(4)}
    assert "Warning" not in errors and "4 runs" in printed


@pytest.mark.slow  # beside other tests, Ray took nine minutes to start a worker
@pytest.mark.cluster
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_ray_gives_the_same_rows(expected: Rows, tmp_path: Path) -> None:
    write_images(tmp_path / "pictures")
    half = ["+engine.answer=0", *JOBS[1:]]  # its worker takes half a minute to start, and another one as long again
    printed = command(tmp_path, "ray", "hydra.launcher.ray.init.num_cpus=1", "tracking=none", *half)
    made = rows(tmp_path)
    assert len(made) == 2 and made.items() <= expected.items()
    assert all(f"#{number}   finished in" in printed for number in range(2))


@pytest.mark.cluster
@pytest.mark.skipif(not os.environ.get("QEXP_SLURM"), reason="QEXP_SLURM names no partition")
def test_slurm_gives_the_same_rows(expected: Rows, tmp_path: Path) -> None:
    assert shutil.which("sbatch")
    write_images(tmp_path / "pictures")
    given = {"partition": os.environ["QEXP_SLURM"], "cpus_per_task": "1", "mem_gb": "2", "timeout_min": "10"}
    options = [f"hydra.launcher.{name}={value}" for name, value in given.items()]
    command(tmp_path, "submitit_slurm", *options, "tracking=none", *JOBS)
    made = rows(tmp_path)
    assert made == expected


def test_a_sweep_with_a_job_that_cannot_start_has_its_table(run: RunCommand, tmp_path: Path) -> None:
    unnamed = [word for word in PRETEND if not word.startswith("model=")]
    code, printed = run("-m", *unnamed, "model=resnet8,custom", "method=none", *fake("Fake"), *CHEAP, "tracking=none")
    assert code == 1 and "model._target_ is not set" in printed and "Traceback" not in printed
    assert len(list((tmp_path / "outputs" / "sweeps").glob("*/results.csv"))) == 1


def test_a_launcher_that_is_not_installed_names_its_extra(run: RunCommand) -> None:
    missing = "hydra.launcher._target_=hydra_plugins.hydra_submitit_launcher.nowhere.Launcher"
    code, printed = run("-m", *PRETEND, "hydra/launcher=submitit_slurm", missing, "tracking=none")
    assert (
        code == 1
        and "error: This launcher is not installed: pip install qexp[slurm]" in printed
        and "Traceback" not in printed
    )
