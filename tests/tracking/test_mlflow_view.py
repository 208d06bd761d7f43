"""What MLflow's own client reads of the runs that the view wrote."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from qexp.records import Measurement, Record
from qexp.tracking.mlflow_view import MlflowView
from qexp.tracking.store import write_record
from qexp.types import DataSpec
from tests import configured
from tests.tracking.views import unpacked

pytestmark = pytest.mark.integration  # MLflow takes seconds to make its database

MakeRecord = Callable[..., Record]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def view(folder: Path) -> MlflowView:
    """A view of a database in a folder that is not there yet."""
    return configured.tracking(
        "mlflow", uri=f"sqlite:///{folder}/new/mlflow.db", artifacts=str(folder / "new" / "files")
    )


@pytest.fixture
def log(view: MlflowView, tmp_path: Path) -> Callable[[Record], Any]:
    """Write and log a record; the run that MLflow then has of its key."""

    def logged(made: Record) -> Any:
        write_record(made, tmp_path / "0")
        (tmp_path / "0" / ".mlflow.json").unlink(missing_ok=True)  # the note that the record before it was logged
        view.log(made, tmp_path / "0")
        (run,) = view.client.search_runs([view.experiment_id], f"tags.`qexp.key` = '{made.key}'")
        return run

    return logged


def texts(view: MlflowView, run: Any) -> dict[str, str]:
    """The run's files by name."""
    names = [entry.path for entry in view.client.list_artifacts(run.info.run_id)]
    return {name: Path(view.client.download_artifacts(run.info.run_id, name)).read_bytes().decode() for name in names}


def test_a_finished_run_is_all_there(view: MlflowView, log: Any, record: MakeRecord, folder: Path) -> None:
    made = record(
        key="finished",
        seconds=90.5,
        environment={"commit": "abc1234"},
        command="python compress.py -m method=none,static",
    )
    run = log(made)
    assert (run.info.run_name, run.info.status) == ("vgg · static int8 · eager", "FINISHED")
    assert run.data.metrics == {"top1": 0.9375, "latency_ms": 2.5, "packed_size_mb": 1 / 3}
    assert run.data.params == {
        "model.id": "vgg", "model.widths": "[8, 16]", "force": "False", "model": "vgg", "data": "pets",
        "method": "static", "bits": "8",
        "engine": "eager", "device": "local", "batch_size": "1", "threads": "2", "seed": "0",
    }  # fmt: skip
    own = {key: value for key, value in run.data.tags.items() if key.startswith("qexp.")}
    assert own == {
        "qexp.kind": "compress", "qexp.status": "finished", "qexp.key": "finished", "qexp.sweep": "monday",
        "qexp.reason": "",
        "qexp.artifact": "outputs/artifacts/vgg", "qexp.place": "monday/0", "qexp.weights": "",
    }  # fmt: skip
    assert run.info.end_time == 1767323045000, "when it was made, not when it was logged"
    assert run.info.end_time - run.info.start_time == 90500
    source = {key: value for key, value in run.data.tags.items() if key.startswith("mlflow.source.")}
    assert source == {
        "mlflow.source.name": "compress.py",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": "abc1234",
    }
    assert "mlflow.parentRunId" not in run.data.tags  # the UI collapses nested runs
    found = texts(view, run)
    assert set(found) == {"record.json", "layers.csv"} and found["layers.csv"] == made.texts["layers.csv"]
    assert Record.from_json(json.loads(found["record.json"])) == made
    assert (folder / "new" / "files").is_dir()


@pytest.mark.parametrize(("status", "shown"), [("failed", "FAILED"), ("unsupported", "FINISHED")])
def test_a_run_that_did_not_finish_says_why(
    status: str, shown: str, log: Any, record: MakeRecord, tmp_path: Path
) -> None:
    reason = "the measurement crashed with SIGSEGV"
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "traceback.txt").write_text("where it was")
    run = log(record(key=status, status=status, reason=reason, measurements=(), texts={}))
    assert run.info.status == shown
    assert (run.data.tags["qexp.status"], run.data.tags["qexp.reason"]) == (status, reason)
    assert run.data.tags["mlflow.note.content"] == reason and not run.inputs.dataset_inputs
    assert run.data.metrics == {}


def test_the_data_and_the_compressed_network_of_a_run(
    view: MlflowView, log: Any, record: MakeRecord, artifact: Path
) -> None:
    run = log(record(key="whole", artifact=str(artifact), config={"data": {"root": "pictures"}}, texts={}))
    assert run.data.tags["qexp.weights"] == "fedcba9876543210"
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest, json.loads(used.dataset.source)) == (
        "pets",
        "0123456789ab",
        {"uri": "pictures"},
    )
    assert json.loads(used.dataset.profile) == {"classes": 2, "channels": 3, "image_size": 32}
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "test")]
    files = {entry.path for entry in view.client.list_artifacts(run.info.run_id, "artifact")}
    assert files == {"artifact/artifact.json", "artifact/model.pt2", "artifact/MLmodel", "artifact/records"}
    assert Path(view.client.download_artifacts(run.info.run_id, "artifact/model.pt2")).read_bytes() == b"a graph"
    assert (artifact / "model.pt2").stat().st_nlink == 2, "takes no space"


def test_compressed_networks_may_stay_where_they_are(
    view: MlflowView, record: MakeRecord, artifact: Path, tmp_path: Path
) -> None:
    without = configured.tracking("mlflow", uri=view.uri, artifacts=view.artifacts, log_artifacts=False)
    moved = tmp_path / "artifacts" / "vgg"  # where the outputs of this folder have it
    moved.parent.mkdir()
    artifact.rename(moved)
    made = record(key="bare", artifact=str(artifact), texts={})
    write_record(made, tmp_path / "sweeps" / "monday" / "0")
    without.log(made, tmp_path / "sweeps" / "monday" / "0")
    (run,) = view.client.search_runs([view.experiment_id], "tags.`qexp.key` = 'bare'")
    assert set(texts(view, run)) == {"record.json"} and len(run.inputs.dataset_inputs) == 1


def test_the_traceback_of_a_failed_run_is_kept(view: MlflowView, log: Any, record: MakeRecord, tmp_path: Path) -> None:
    (tmp_path / "0" / ".hydra").mkdir(parents=True)
    (tmp_path / "0" / "traceback.txt").write_text("where it was")
    run = log(record(key="traced", status="failed", reason="KeyError", texts={}))
    assert texts(view, run)["traceback.txt"] == "where it was"


def test_many_and_long_values_are_taken(log: Any, record: MakeRecord) -> None:
    many = {f"option{i}": i for i in range(250)}
    measurements = tuple(Measurement(f"metric{i}", float(i), "x") for i in range(120))
    made = record(
        key="many",
        config={"deep": {"deeper": many}, "text": "x" * 7000},
        measurements=measurements,
        reason="y" * 9000,
        texts={},
    )
    run = log(made)
    assert {f"deep.deeper.option{i}": str(i) for i in range(250)}.items() <= run.data.params.items()
    assert run.data.params["text"] == "x" * 6000
    assert run.data.metrics == {m.name: m.value for m in measurements}
    assert run.data.tags["qexp.reason"] == "y" * 8000


def test_preparing_twice_is_the_same_experiment(view: MlflowView) -> None:
    view.prepare()
    again = configured.tracking("mlflow", uri=view.uri, artifacts=view.artifacts)
    again.prepare()
    again.prepare()
    assert again.experiment_id == view.experiment_id
    assert [e.name for e in view.client.search_experiments()].count("qexp") == 1


def test_an_experiment_of_an_earlier_version_gets_the_views_of_this_one(view: MlflowView) -> None:
    tag = "mlflow.sharedViewState.qexp"
    wanted = view.client.get_experiment(view.experiment_id).tags[tag]
    view.client.set_experiment_tag(view.experiment_id, tag, "what it was before")
    configured.tracking("mlflow", uri=view.uri, artifacts=view.artifacts).prepare()
    assert view.client.get_experiment(view.experiment_id).tags[tag] == wanted


def found_by_view(view: MlflowView, page: str) -> set[str]:
    """The runs that MLflow shows at an address that names a view."""
    link = urlsplit(page.removeprefix("/#"))
    key = parse_qs(link.query)["viewStateShareKey"][0]
    assert link.path == f"/experiments/{view.experiment_id}/runs"
    envelope = json.loads(view.client.get_experiment(view.experiment_id).tags[f"mlflow.sharedViewState.{key}"])
    state = unpacked(envelope)
    return {run.info.run_id for run in view.client.search_runs([view.experiment_id], state["searchFilter"])}


def test_a_sweeps_summary_holds_the_table_and_compares_its_runs(
    view: MlflowView, log: Any, record: MakeRecord, tmp_path: Path
) -> None:
    runs = {log(record(key=f"s{i}", sweep="tuesday", texts={})).info.run_id for i in range(3)}
    earlier = log(record(key="s9", sweep="monday", texts={})).info.run_id
    table = "| model | ms |\n| --- | ---: |\n| vgg | 2.5 |"
    files = [tmp_path / "results.md", tmp_path / "results.csv", tmp_path / "report.html"]
    files[0].write_text(table)
    files[1].write_bytes(b"model,ms\r\n")
    files[2].write_text("<h1>sweep</h1>")
    for _ in range(2):  # a second summary is not among the runs that it compares
        page = view.log_sweep("tuesday", [record(), record(status="unsupported")], table, files)
    summaries = view.client.search_runs(
        [view.experiment_id], "tags.`qexp.sweep` = 'tuesday' and tags.`qexp.kind` = 'sweep'"
    )
    summary, shown = summaries[0], summaries[0].info.run_id
    assert len(summaries) == 2
    assert (summary.info.run_name, summary.info.status) == ("sweep tuesday", "FINISHED")
    assert summary.data.tags["qexp.status"] == "finished"
    note = summary.data.tags["mlflow.note.content"]
    charts, side_by_side, report = re.findall(r"\]\(([^)]+)\)", note)
    assert charts == page and note.endswith(table) and found_by_view(view, page) == runs
    query = parse_qs(urlsplit(side_by_side.removeprefix("/#")).query)
    assert side_by_side.startswith("/#/compare-runs?")
    assert set(json.loads(query["runs"][0])) == runs and json.loads(query["experiments"][0]) == [view.experiment_id]
    assert texts(view, summary) == {"results.md": table, "results.csv": "model,ms\r\n", "report.html": "<h1>sweep</h1>"}
    assert (
        report.startswith("/#/experiments/")
        and report.endswith("/artifacts/report.html")
        and report.split("/")[5] == shown
    )
    again = view.log_sweep("thursday", [record(key="s9", reused="sweeps/monday/0")], table, [])
    assert found_by_view(view, again) == {earlier}, "of the earlier sweep"


def test_a_sweep_with_a_failed_run_says_so(view: MlflowView, record: MakeRecord) -> None:
    view.log_sweep("friday", [record(), record(status="failed")], "table", [])
    (summary,) = view.client.search_runs([view.experiment_id], "tags.`qexp.sweep` = 'friday'")
    assert summary.data.tags["qexp.status"] == "failed"


def test_a_training_that_goes_on_stays_in_its_run(view: MlflowView, pets: DataSpec, tmp_path: Path) -> None:
    names: list[str] = []
    for _ in range(2):
        logger = view.training_logger(
            tmp_path / "baseline", "vgg · train", {"model": {"id": "vgg"}, "seed": 1}, pets, "pictures"
        )
        logger.log_metrics({"val_top1": 0.5}, step=len(names))
        names.append(logger.run_id)
    assert names[0] == names[1] == (tmp_path / "baseline" / "mlflow_run_id").read_text()
    run = view.client.get_run(names[0])
    assert run.data.tags["qexp.kind"] == "train" and run.info.run_name == "vgg · train"
    assert run.data.params == {"model.id": "vgg", "seed": "1"}
    assert len(view.client.get_metric_history(names[0], "val_top1")) == 2
    (used,) = run.inputs.dataset_inputs
    assert used.dataset.name == "pets" and used.tags[0].value == "train"


def test_files_lie_with_the_server_where_there_is_one() -> None:
    asked: dict[str, Any] = {}
    view = configured.tracking("mlflow", uri="http://somewhere:5000", artifacts="outputs/files")
    view.__dict__["client"] = types.SimpleNamespace(
        get_experiment_by_name=lambda name: None,
        create_experiment=lambda name, artifact_location, tags: asked.update(at=artifact_location) or 7,
    )
    assert view.experiment_id == "7" and asked == {"at": None}
