"""Shows the records on disk in MLflow.

Each record becomes a run, tagged with its sweep instead of nested in it, and each sweep gets one summary run.
"""

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

from qexp.artifact import Artifact
from qexp.files import RECORDS, link, write_json
from qexp.metrics import metrics_of, own_metrics
from qexp.records import Record
from qexp.tracking import mlflow_pages as pages
from qexp.tracking.mlflow_model import mlmodel
from qexp.tracking.mlflow_pages import flatten
from qexp.tracking.store import NOTE, noted
from qexp.types import DataSpec, UserError, command_line

EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # otherwise the UI opens on its pages for language models
    pages.VIEW + pages.EVERYTHING: pages.view_tag("Compressed networks", pages.NOT_SUMMARIES, [], 0),
}
ENVIRONMENT = {
    # MLflow's own limits add up to minutes, and records on disk can wait.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # saves two lines and two requests per run
}  # fmt: skip
PARAM_LENGTH, PARAMS_PER_REQUEST = 6000, 100  # what MLflow takes at most: characters of a value, and params
SHOWN_DIGEST = 12  # characters, of which MLflow takes at most 36


class MlflowView:
    """Logs runs and sweeps to MLflow.

    Args:
        uri: MLflow's tracking URI.
        experiment: Name of the experiment that holds all runs.
        artifacts: Folder for the runs' files. Not used if `uri` names a server, which has its own.
        log_artifacts: Whether the compressed networks are logged too.
    """

    def __init__(self, uri: str, experiment: str, artifacts: str | None, log_artifacts: bool):
        self.uri, self.experiment, self.artifacts, self.log_artifacts = uri, experiment, artifacts, log_artifacts

    @cached_property
    def client(self) -> Any:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient  # takes seconds to import

        for name in ("mlflow", "alembic"):  # they report every step of setting up the database
            logging.getLogger(name).setLevel(logging.WARNING)
        # This one warns at every attempt, while the error after the last attempt is enough.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        with self._first_contact():  # making a client sets up its database
            return MlflowClient(self.uri)

    @cached_property
    def experiment_id(self) -> str:
        """MLflow's id of the experiment, which is created if it does not exist."""
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
                if known.tags.get(name) != value:  # made by an earlier version of qexp
                    client.set_experiment_tag(known.experiment_id, name, value)
            return str(known.experiment_id)

    @contextmanager
    def _first_contact(self) -> Iterator[None]:
        """Hold a lock on the database file, because processes that set it up at the same time would ruin it."""
        if not self.uri.startswith("sqlite:///"):
            yield
            return
        database = Path(self.uri.removeprefix("sqlite:///"))
        database.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(database.with_name(f".{database.name}.lock")):
            yield

    def prepare(self) -> None:
        """Create the database and the experiment once, before jobs could race to create them."""
        _ = self.experiment_id

    def address(self, page: str = "") -> str:
        """The address of a page of MLflow's, with the command that must be running for it if `uri` is not a server."""
        if self.uri.startswith("http"):
            return self.uri.rstrip("/") + page
        return f"http://localhost:5000{page} (while this runs: mlflow ui --backend-store-uri {self.uri})"

    def training_logger(self, folder: Path, run_name: str, params: dict[str, Any], data: DataSpec, source: str) -> Any:
        """Make Lightning's MLflow logger for the curves of a training. A resumed training continues its run.

        Args:
            folder: Folder of the training, where the id of its run is kept.
            run_name: Name of the run.
            params: Params of the run, possibly nested.
            data: What the network is trained on.
            source: Where the data comes from.
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
        """Log one finished, unsupported or failed run with its params, metrics, tags, data and files.

        A note in the folder says that this was done, so that a run is logged once, however often this is called. What a
        killed call left behind is replaced.

        Args:
            record: Record of the run.
            folder: Folder of the record, whose files are logged too.
        """
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
                "qexp.kind": record.kind, "qexp.status": record.status, "qexp.key": record.key,
                "qexp.sweep": record.sweep, "qexp.reason": record.reason,
                "qexp.artifact": record.artifact, "qexp.place": place,
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
            self._log(run, {**flatten(record.config), "device": record.device, **record.params}, record.metrics)
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
        """Log what the UI shows as the dataset of a run, whose `context` is `train` or `test`."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        profile = {"classes": data.num_classes, "channels": data.preprocessing.channels, "image_size": data.image_size}
        shown = Dataset(
            data.name, data.digest[:SHOWN_DIGEST], "local", json.dumps({"uri": source}), profile=json.dumps(profile)
        )
        self.client.log_inputs(run, [DatasetInput(shown, [InputTag("mlflow.data.context", context)])])

    def _log_network(self, run: Any, artifact: Artifact, record: Record, folder: Path) -> None:
        """Log the compressed network as it is on disk, with the run's record and the file MLmodel.

        They go into the run's folder `artifact`, and take no space there if MLflow's files are on the same disk.
        """
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
        """The id of the run that was logged completely for `place` (SWEEP/JOB), or "". Unfinished ones are deleted."""
        whole = ""
        for run in self.client.search_runs([self.experiment_id], f"tags.`qexp.place` = '{place}'"):
            if run.info.status == "RUNNING":
                self.client.delete_run(run.info.run_id)
            else:
                whole = str(run.info.run_id)
        return whole

    def log_sweep(self, sweep: str, records: list[Record], markdown: str, files: list[Path]) -> str:
        """Log the summary run of a sweep, whose description is the table of results with links to views of the runs.

        Args:
            sweep: Name of the sweep.
            records: Its records, including those reused from earlier sweeps.
            markdown: The table of results.
            files: Files to log with the summary.

        Returns:
            The page with charts of the runs.
        """
        of_sweep = f"tags.`qexp.sweep` = '{sweep}' and {pages.NOT_SUMMARIES}"
        found = list(self.client.search_runs([self.experiment_id], of_sweep))
        for record in records:
            if record.reused:  # an earlier sweep has logged its run
                found += self.client.search_runs(
                    [self.experiment_id], f"tags.`qexp.key` = '{record.key}'", max_results=1
                )
        runs = [run.info.run_id for run in found]
        reused = [run.info.run_id for run in found if run.data.tags["qexp.sweep"] != sweep]
        search = f"attributes.run_id IN ({', '.join(repr(run) for run in runs)})" if reused else of_sweep
        key, now = pages.view_key(sweep), int(time.time() * 1000)
        own = [metric.name for metric in own_metrics(metrics_of(records))]
        view = pages.view_tag(f"sweep {sweep}", search, pages.swept_options(records), now, own)
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
        """Create a run in the experiment.

        Args:
            name: Name of the run.
            tags: Its tags, which are cut to the length that MLflow takes.
            command: Command whose script MLflow shows as the run's source, by default that of this process.
            start_ms: When the run started, in milliseconds since 1970, or None for now.
        """
        command = command or command_line()
        program = next((word for word in command.split() if word.endswith(".py")), command)
        tags = {**tags, "mlflow.source.name": program, "mlflow.source.type": "LOCAL"}
        tags = {key: value[: pages.TAG_LENGTH] for key, value in tags.items()}
        return self.client.create_run(self.experiment_id, start_ms, tags, name)

    def _log(self, run: str, params: dict[str, Any], metrics: dict[str, float]) -> None:
        """Log in as few requests as MLflow allows, because each costs tens of milliseconds through a server."""
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        rows = [Param(name, str(value)[:PARAM_LENGTH]) for name, value in params.items()]
        self.client.log_batch(
            run, [Metric(name, value, now, 0) for name, value in metrics.items()], rows[:PARAMS_PER_REQUEST]
        )
        for start in range(PARAMS_PER_REQUEST, len(rows), PARAMS_PER_REQUEST):
            self.client.log_batch(run, params=rows[start : start + PARAMS_PER_REQUEST])


def _artifact(record: Record, folder: Path) -> Artifact | None:
    """Find the artifact of the record in `folder`, or None if it is gone.

    The path in the record is relative to where the run was started, so the artifacts beside the sweep are tried too.
    """
    for place in (Path(record.artifact), folder.parents[2] / "artifacts" / Path(record.artifact).name):
        if record.artifact and (place / "artifact.json").exists():
            with suppress(UserError):
                return Artifact.read(place)
    return None
