"""Every record is in MLflow once, whatever happened to the program or the server before."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate

from qexp.files import write_json
from qexp.records import Record
from qexp.tracking.mlflow_view import MlflowView
from qexp.tracking.store import write_record
from qexp.tracking.sync import sync
from tests import configured

pytestmark = pytest.mark.integration

MakeRecord = Callable[..., Record]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def view(empty_database: Path, tmp_path: Path) -> MlflowView:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return configured.tracking("mlflow", uri=f"sqlite:///{tmp_path}/mlflow.db", artifacts=str(tmp_path / "files"))


@pytest.fixture
def outputs(record: MakeRecord, tmp_path: Path) -> Path:
    """Three records that are nowhere yet, and one that was taken from an earlier sweep."""
    place = {
        "_target_": "qexp.tracking.mlflow_view.MlflowView",
        "uri": f"sqlite:///{tmp_path}/mlflow.db",
        "experiment": "qexp",
        "log_artifacts": True,
    }
    config = {"tracking": {**place, "artifacts": str(tmp_path / "files")}}
    for sweep, job, reused in (
        ("monday", 0, ""),
        ("monday", 1, ""),
        ("sunday", 0, ""),
        ("tuesday", 0, "sweeps/monday/0"),
    ):
        made = record(key=f"{sweep}-{job}", sweep=sweep, config=config, reused=reused)
        write_record(made, tmp_path / "outputs" / "sweeps" / sweep / str(job))
    return tmp_path / "outputs"


def runs(view: MlflowView) -> dict[str, str]:
    """The status of all runs by place; each place once."""
    found = view.client.search_runs([view.experiment_id])
    assert len({run.data.tags["qexp.place"] for run in found}) == len(found)
    return {run.data.tags["qexp.place"]: run.info.status for run in found}


ALL = dict.fromkeys(("monday/0", "monday/1", "sunday/0"), "FINISHED")


def test_what_waits_is_logged_once(view: MlflowView, outputs: Path) -> None:
    for _ in range(2):
        assert sync(outputs, instantiate) == (3, [])
        assert runs(view) == ALL


def test_two_at_once_log_once(view: MlflowView, outputs: Path) -> None:
    view.prepare()
    workers = [threading.Thread(target=sync, args=(outputs, instantiate)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert runs(view) == ALL


@pytest.mark.parametrize("step", ["create_run", "log_batch", "log_artifact", "set_terminated", "the note"])
def test_what_a_kill_left_behind_is_replaced(
    step: str, view: MlflowView, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed right after the step that is named."""

    class Killed(BaseException):
        pass

    with monkeypatch.context() as patch, pytest.raises(Killed):
        if step == "the note":
            write: Any = sys.modules["qexp.tracking.mlflow_view"].write_json  # type: ignore[attr-defined]

            def write_once(file: Path, value: dict[str, str]) -> None:
                if value["run"]:
                    raise Killed
                write(file, value)

            patch.setattr("qexp.tracking.mlflow_view.write_json", write_once)
        else:
            original = getattr(view.client, step)

            def killed(*given: Any, **named: Any) -> None:
                original(*given, **named)
                raise Killed

            patch.setattr(view.client, step, killed)
        sync(outputs, lambda config: view)
    assert sync(outputs, instantiate) == (3, [])
    assert runs(view) == ALL


def test_a_server_that_cannot_be_reached_is_asked_once_and_the_records_wait(view: MlflowView, outputs: Path) -> None:
    asked = []

    class Unreachable:
        def log(self, record: Record, folder: Path) -> None:
            asked.append(folder)
            raise ConnectionError("nobody answers\nat all")

    assert sync(outputs, lambda config: Unreachable()) == (
        0,
        [f"sqlite:///{view.uri.removeprefix('sqlite:///')}: nobody answers"],
    )
    assert len(asked) == 1
    assert sync(outputs, instantiate) == (3, [])
    assert runs(view) == ALL


@pytest.mark.thorough
def test_the_command(view: MlflowView, outputs: Path, tmp_path: Path) -> None:
    def command(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "qexp.tracking", *words], cwd=ROOT, capture_output=True, text=True)

    (outputs / "sweeps" / "sunday" / "0" / "record.json").write_text("{}")
    other = f"sqlite:///{tmp_path}/other.db"
    done = command("sync", f"outputs={outputs}", f"uri={other}")
    assert (done.returncode, done.stdout) == (
        1,
        "2 runs are in tracking\n",
    ) and "sunday/0/record.json holds no record" in done.stderr
    assert runs(configured.tracking("mlflow", uri=other, artifacts=str(tmp_path / "files"))) == {
        place: "FINISHED" for place in ALL if "sunday" not in place
    }
    assert command("sync", f"outputs={tmp_path}").stderr.startswith(f"error: {tmp_path} holds no sweeps")
    assert command("sink").returncode == 2


@pytest.mark.thorough
def test_runs_without_tracking_are_logged_where_the_command_says(view: MlflowView, outputs: Path) -> None:
    for file in outputs.rglob("record.json"):
        values = json.loads(file.read_text())
        values["config"]["tracking"] = {"_target_": "qexp.tracking.nowhere.Nowhere"}
        write_json(file, values)
    assert sync(outputs, instantiate) == (0, []), "they did not ask for it"
    for _ in range(2):
        command = [sys.executable, "-m", "qexp.tracking", "sync", f"outputs={outputs}", f"uri={view.uri}"]
        assert (
            subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
            == "3 runs are in tracking\n"
        )
        assert runs(view) == ALL
