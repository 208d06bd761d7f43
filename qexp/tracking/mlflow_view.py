"""MLflow as a view of the records on disk: flat runs tagged with their sweep, and one summary run per sweep."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from qexp.files import RECORDS, link, write_json
from qexp.tracking import mlflow_pages as pages
from qexp.tracking.mlflow_model import mlmodel
from qexp.tracking.mlflow_pages import flatten
from qexp.tracking.store import NOTE, noted
from qexp.types import Artifact, DataSpec, Record, UserError, command_line

EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # or the UI opens on its pages for language models
    pages.VIEW + pages.EVERYTHING: pages.view_tag("Compressed networks", pages.NOT_SUMMARIES, [], 0),
}
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # records can wait; MLflow's own are minutes
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines per run, and two requests
}  # fmt: skip
PARAM_LENGTH, PARAMS_PER_REQUEST = 6000, 100  # what MLflow takes, in characters
SHOWN_DIGEST = 12  # characters; MLflow takes 36


class MlflowView:
    def __init__(self, uri: str, experiment: str, artifacts: str | None, log_artifacts: bool):
        self.uri, self.experiment, self.artifacts, self.log_artifacts = uri, experiment, artifacts, log_artifacts

    @cached_property
    def client(self) -> Any:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient  # takes seconds to import

        for name in ("mlflow", "alembic"):  # they tell of every step of setting up the database
            logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger("urllib3.connectionpool").setLevel(
            logging.ERROR
        )  # of every try; the error after the last is enough
        with self._first_contact():  # a client sets up its database when it is made
            return MlflowClient(self.uri)

    @cached_property
    def experiment_id(self) -> str:
        """MLflow's id of the experiment, made where it is missing."""
        client = self.client
        with self._first_contact():
            known = client.get_experiment_by_name(self.experiment)
            if not known:
                place = (
                    Path(self.artifacts).resolve().as_uri()
                    if self.artifacts and not self.uri.startswith("http")
                    else None
                )
                return str(client.create_experiment(self.experiment, tags=EXPERIMENT_TAGS, artifact_location=place))
            for name, value in EXPERIMENT_TAGS.items():
                if known.tags.get(name) != value:  # of an earlier version
                    client.set_experiment_tag(known.experiment_id, name, value)
            return str(known.experiment_id)

    @contextmanager
    def _first_contact(self) -> Iterator[None]:
        """Processes that set up the same database file at once would ruin it."""
        if not self.uri.startswith("sqlite:///"):
            yield
            return
        database = Path(self.uri.removeprefix("sqlite:///"))
        database.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(database.with_name(f".{database.name}.lock")):
            yield

    def prepare(self) -> None:
        """Create database and experiment, once, before jobs that could race for it."""
        _ = self.experiment_id

    def address(self, page: str = "") -> str:
        """How people come to a page of MLflow's."""
        if self.uri.startswith("http"):
            return self.uri.rstrip("/") + page
        return f"http://localhost:5000{page} (while this runs: uv run mlflow ui --backend-store-uri {self.uri})"

    def training_logger(self, folder: Path, run_name: str, params: dict[str, Any], data: DataSpec, source: str) -> Any:
        """Lightning's MLflow logger for the curves of the training in `folder`; a resumed training goes on in its run.

        source: where the data comes from.
        """
        from pytorch_lightning.loggers import MLFlowLogger
        from pytorch_lightning.utilities import rank_zero_only

        memory = folder / "mlflow_run_id"
        if getattr(rank_zero_only, "rank", 0) == 0 and not memory.exists():
            run = self._create_run(run_name, {"qexp.kind": "train", "qexp.status": "started"}).info.run_id
            folder.mkdir(parents=True, exist_ok=True)
            memory.write_text(run)
            self._log(run, flatten(params), {})
            self._log_data(run, data, source, "train")
        run_id = memory.read_text() if memory.exists() else None
        return MLFlowLogger(self.experiment, run_name, self.uri, run_id=run_id)

    def log(self, record: Record, folder: Path) -> None:
        """One finished, unsupported or failed run with its params, metrics, tags, data and the files in `folder`, where it is noted:
        once, however often this is called. What an earlier call left behind, when it was killed, is replaced."""
        note = folder / NOTE
        with FileLock(note.with_suffix(".lock")):
            before = noted(folder)
            if before.get("uri") == self.uri and before["run"]:
                return
            place = f"{record.sweep}/{folder.name}"
            whole = self._logged_whole(place) if before.get("uri") == self.uri else ""
            write_json(note, {"uri": self.uri, "run": whole})
            if whole:
                return
            artifact = _artifact(record, folder)
            tags = {
                "qexp.kind": record.kind, "qexp.status": record.status, "qexp.key": record.key, "qexp.sweep": record.sweep,
                "qexp.reason": record.reason, "qexp.artifact": record.artifact, "qexp.place": place,
                "qexp.weights": str(artifact.source["weights"]) if artifact else "",
            }  # fmt: skip
            if commit := record.environment.get("commit"):
                tags["mlflow.source.git.commit"] = commit
            if record.reason:
                tags["mlflow.note.content"] = record.reason
            ended = int(datetime.fromisoformat(record.created).timestamp() * 1000)
            made = self._create_run(
                record.label.removesuffix(" · batch 1"), tags, record.command, ended - round(1000 * record.seconds)
            )
            run = made.info.run_id
            self._log(run, {**flatten(record.config), **record.params}, record.metrics)
            for file in sorted(folder.iterdir()):
                if file.is_file() and not file.name.startswith(".") and file.stat().st_size:
                    self.client.log_artifact(run, str(file))
            if artifact:
                data = record.config.get("data", {})
                self._log_data(run, artifact.data, str(data.get("root") or artifact.data.name), "test")
                if self.log_artifacts:
                    self._log_network(made, artifact, record, folder)
            self.client.set_terminated(run, "FAILED" if record.status == "failed" else "FINISHED", ended)
            write_json(note, {"uri": self.uri, "run": run})

    def _log_data(self, run: str, data: DataSpec, source: str, context: str) -> None:
        """What the UI shows as the run's dataset; context: `train` or `test`."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        profile = {"classes": data.num_classes, "channels": data.channels, "image_size": data.image_size}
        shown = Dataset(
            data.name, data.digest[:SHOWN_DIGEST], "local", json.dumps({"uri": source}), profile=json.dumps(profile)
        )
        self.client.log_inputs(run, [DatasetInput(shown, [InputTag("mlflow.data.context", context)])])

    def _log_network(self, run: Any, artifact: Artifact, record: Record, folder: Path) -> None:
        """The compressed network as it is on disk, in the run's folder `artifact`, with the run's record, and a model of MLflow's; it
        takes no space where MLflow's files are on the same disk."""
        place, known = (
            urlsplit(run.info.artifact_uri),
            {name: artifact.folder / name for name in ("artifact.json", *artifact.files)},
        )
        with tempfile.TemporaryDirectory() as temporary:
            known["MLmodel"] = Path(temporary) / "MLmodel"
            known["MLmodel"].write_text(mlmodel(artifact, run.info.run_id, record.params["engine"]))
            known[f"{RECORDS}/record.json"] = folder / "record.json"
            for name, file in known.items():
                if place.scheme == "file":
                    link(file, Path(unquote(place.path)) / "artifact" / name)
                else:
                    self.client.log_artifact(run.info.run_id, str(file), str(Path("artifact", name).parent))

    def _logged_whole(self, place: str) -> str:
        """The id of the run of the record in that place, if it was ended; one that was not is deleted."""
        whole = ""
        for run in self.client.search_runs([self.experiment_id], f"tags.`qexp.place` = '{place}'"):
            if run.info.status == "RUNNING":
                self.client.delete_run(run.info.run_id)
            else:
                whole = str(run.info.run_id)
        return whole

    def log_sweep(self, sweep: str, records: list[Record], markdown: str, files: list[Path]) -> str:
        """The summary run of a sweep: its description is the result table and links views of its runs. The page of their charts."""
        of_sweep = f"tags.`qexp.sweep` = '{sweep}' and {pages.NOT_SUMMARIES}"
        found = list(self.client.search_runs([self.experiment_id], of_sweep))
        for record in records:
            if record.reused:  # its run is that of an earlier sweep
                found += self.client.search_runs(
                    [self.experiment_id], f"tags.`qexp.key` = '{record.key}'", max_results=1
                )
        runs = [run.info.run_id for run in found]
        reused = [run.info.run_id for run in found if run.data.tags["qexp.sweep"] != sweep]
        search = f"attributes.run_id IN ({', '.join(repr(run) for run in runs)})" if reused else of_sweep
        key, now = pages.view_key(sweep), int(time.time() * 1000)
        view = pages.view_tag(f"sweep {sweep}", search, pages.swept_options(records), now)
        self.client.set_experiment_tag(self.experiment_id, pages.VIEW + key, view)
        page = pages.view_page(self.experiment_id, key)
        links = {
            "Charts of these runs": page,
            "Compare them side by side": pages.compare_page(self.experiment_id, runs),
        }
        status = "failed" if any(record.status == "failed" for record in records) else "finished"
        tags = {"qexp.kind": "sweep", "qexp.sweep": sweep, "qexp.status": status, "qexp.reused": " ".join(reused)}
        run = self._create_run(f"sweep {sweep}", tags).info.run_id
        links |= {
            f"Page {f.name}": pages.file_page(self.experiment_id, run, f.name) for f in files if f.suffix == ".html"
        }
        self.client.set_tag(run, "mlflow.note.content", pages.described(markdown, links))
        for file in files:
            self.client.log_artifact(run, str(file))
        self.client.set_terminated(run)
        return page

    def _create_run(self, name: str, tags: dict[str, str], command: str = "", start_ms: int | None = None) -> Any:
        """command: what MLflow calls the run's source; that of this process, unless it is given."""
        command = command or command_line()
        program = next((word for word in command.split() if word.endswith(".py")), command)
        tags = {**tags, "mlflow.source.name": program, "mlflow.source.type": "LOCAL"}
        tags = {key: value[: pages.TAG_LENGTH] for key, value in tags.items()}
        return self.client.create_run(self.experiment_id, start_ms, tags, name)

    def _log(self, run: str, params: dict[str, Any], metrics: dict[str, float]) -> None:
        """As few requests as MLflow allows: through a server each costs tens of milliseconds."""
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        rows = [Param(name, str(value)[:PARAM_LENGTH]) for name, value in params.items()]
        self.client.log_batch(
            run, [Metric(name, value, now, 0) for name, value in metrics.items()], rows[:PARAMS_PER_REQUEST]
        )
        for start in range(PARAMS_PER_REQUEST, len(rows), PARAMS_PER_REQUEST):
            self.client.log_batch(run, params=rows[start : start + PARAMS_PER_REQUEST])


def _artifact(record: Record, folder: Path) -> Artifact | None:
    """The artifact of the record in `folder`, whose path is as seen from where the run was started; None where it is gone."""
    for place in (Path(record.artifact), folder.parents[2] / "artifacts" / Path(record.artifact).name):
        if record.artifact and (place / "artifact.json").exists():
            with suppress(UserError):
                return Artifact.read(place)
    return None
