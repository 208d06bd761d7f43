"""Many processes log at once.

They do so to a database file that is not there yet, and through an MLflow server on PostgreSQL that goes away.

The server is the one that `mlflow server` starts, in a process that has imported it already. By itself it takes 20 s
to start.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate

from qexp.records import Record
from qexp.tracking.mlflow_view import MlflowView
from qexp.tracking.store import read_record, write_record
from qexp.tracking.sync import sync
from tests import configured
from tests.commands import FEW_WINDOWS, PRETEND, RunCommand, fake

pytestmark = pytest.mark.integration

SCRIPT = Path(__file__).parents[1] / "cluster" / "postgres.sh"
MakeRecord = Callable[..., Record]


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    """Of processes that need not import everything anew."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(
        ["tests.tracking.test_server", "mlflow.tracking", "mlflow.server.fastapi_app", "uvicorn"]
    )
    return made


def write_records(record: MakeRecord, tracking: dict[str, Any], outputs: Path, writers: int, each: int) -> list[Path]:
    """A sweep of made-up records per writer, which were never logged; their folders."""
    tracking = {
        "_target_": "qexp.tracking.mlflow_view.MlflowView",
        "experiment": "qexp",
        "log_artifacts": True,
        **tracking,
    }
    for writer in range(writers):
        for job in range(each):
            made = record(key=f"{writer}-{job}", sweep=f"sweep{writer}", config={"tracking": tracking})
            write_record(made, outputs / "sweeps" / f"sweep{writer}" / str(job))
    return sorted((outputs / "sweeps").iterdir())


def log_sweep(tracking: dict[str, Any], sweep: Path) -> None:
    """What each writer does; it ends with an error at the first record that is not taken."""
    view = configured.tracking("mlflow", **tracking)
    for folder in sorted(sweep.iterdir()):
        view.log(read_record(folder / "record.json"), folder)


def start_writers(context: ForkServerContext, tracking: dict[str, Any], sweeps: list[Path]) -> list[ForkServerProcess]:
    writers = [context.Process(target=log_sweep, args=(tracking, sweep)) for sweep in sweeps]
    for writer in writers:
        writer.start()
    return writers


def runs(view: MlflowView) -> dict[str, Any]:
    """All runs of records by place; each place once, none under way."""
    found = [run for run in view.client.search_runs([view.experiment_id]) if run.data.tags["qexp.kind"] == "compress"]
    assert {run.info.status for run in found} == {"FINISHED"}
    by_place = {run.data.tags["qexp.place"]: run for run in found}
    assert len(by_place) == len(found)
    return by_place


@pytest.mark.thorough
def test_a_new_database_file_takes_what_many_write_at_once(
    context: ForkServerContext, record: MakeRecord, tmp_path: Path
) -> None:
    tracking = {"uri": f"sqlite:///{tmp_path}/mlflow.db", "experiment": "qexp", "artifacts": str(tmp_path / "files")}
    writers = start_writers(context, tracking, write_records(record, tracking, tmp_path, writers=8, each=2))
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0] * 8
    view = configured.tracking("mlflow", **tracking)
    assert [experiment.name for experiment in view.client.search_experiments()].count("qexp") == 1
    found = runs(view)
    assert len(found) == 16 and all(run.data.metrics == record().metrics for run in found.values())


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The URI of an empty PostgreSQL database."""
    if not [*Path("/usr/lib/postgresql").glob("*/bin/initdb")]:
        pytest.skip("PostgreSQL is not installed (Debian's package postgresql)")
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path, which other users may not enter
        os.chmod(folder, 0o755)
        started = subprocess.run([SCRIPT, "start", folder], stdout=subprocess.PIPE, text=True, check=True)
        yield started.stdout.strip()
        subprocess.run([SCRIPT, "stop", folder], check=True)


def serve(database: str, files: str, port: int) -> None:
    import uvicorn
    from mlflow import server

    os.environ.update({
        server.BACKEND_STORE_URI_ENV_VAR: database, server.ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
        server.SERVE_ARTIFACTS_ENV_VAR: "true", server.ARTIFACTS_DESTINATION_ENV_VAR: files,
    })  # fmt: skip
    uvicorn.run("mlflow.server.fastapi_app:app", port=port, log_level="error")


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def start_server(
    context: ForkServerContext, database: str, port: int, tmp_path: Path
) -> Iterator[Callable[[], ForkServerProcess]]:
    """Starts MLflow's server, each time on the same port, and waits until it answers."""
    started: list[ForkServerProcess] = []

    def answers() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    def start() -> ForkServerProcess:
        started.append(context.Process(target=serve, args=(database, str(tmp_path / "files"), port)))
        started[-1].start()
        wait_until(answers)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.join()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def logged(sweeps: list[Path]) -> list[Path]:
    """The records that were noted as logged."""
    notes = [note for sweep in sweeps for note in sweep.glob("*/.mlflow.json")]
    return [note for note in notes if json.loads(note.read_text())["run"]]


@pytest.mark.thorough
@pytest.mark.postgres
def test_every_record_is_there_once_though_the_server_was_away(
    context: ForkServerContext,
    start_server: Any,
    port: int,
    record: MakeRecord,
    run: RunCommand,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracking = {"uri": f"http://127.0.0.1:{port}", "experiment": "qexp", "artifacts": None}
    sweeps = write_records(record, tracking, tmp_path / "outputs", writers=4, each=3)
    server = start_server()
    view = configured.tracking("mlflow", **tracking)
    view.prepare()
    writers = start_writers(context, tracking, sweeps)
    wait_until(lambda: len(logged(sweeps)) >= 4)
    server.kill()
    for writer in writers:
        writer.join(120)
    before = len(logged(sweeps))
    assert 4 <= before < 12 and any(writer.exitcode for writer in writers)

    start_server()
    code, printed = run(
        "-m",
        *PRETEND,
        *fake("Says", "answer=0"),
        "measure.parity=null",  # it says what no network does
        *FEW_WINDOWS,
        "method=none,static",
        "tracking=server",
        f"tracking.uri={view.uri}",
    )
    assert code == 0 and "wait" not in printed, printed
    assert sync(tmp_path / "outputs", instantiate) == (14, [])
    found = runs(view)
    (own,) = {place.partition("/")[0] for place in found} - {sweep.name for sweep in sweeps}
    assert {f"{own}/0", f"{own}/1"} <= {*found} and len(found) == 14
    assert found["sweep0/0"].data.metrics == record().metrics
    assert "record.json" in {entry.path for entry in view.client.list_artifacts(found["sweep0/0"].info.run_id)}
    (summary,) = view.client.search_runs([view.experiment_id], "tags.`qexp.kind` = 'sweep'")
    assert summary.info.status == "FINISHED" and summary.data.tags["qexp.sweep"] == own
