"""MLflow as a view of the records on disk: flat runs tagged with their sweep, and one summary run per sweep."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock

from qexp.files import write_json
from qexp.types import Record

# What MLflow takes: characters of a value, parameters of one request.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # or the UI opens on its pages for language models
NOTE = ".mlflow.json"  # beside a record: where it was logged
RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}  # records can wait; MLflow's own are minutes
PARAM_LENGTH, TAG_LENGTH, PARAMS_PER_REQUEST = 6000, 8000, 100


class MlflowView:
    """uri: MLflow's tracking URI; experiment: the name under which all runs lie; artifacts: folder of their files, unless
    the URI is that of a server, which has its own."""

    def __init__(self, uri: str, experiment: str, artifacts: str):
        self.uri, self.experiment, self.artifacts = uri, experiment, artifacts

    @cached_property
    def client(self) -> Any:
        for name, value in RETRIES.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient  # takes seconds to import

        for name in ("mlflow", "alembic"):  # they tell of every step of setting up the database
            logging.getLogger(name).setLevel(logging.WARNING)
        with self._first_contact():  # a client sets up its database when it is made
            return MlflowClient(self.uri)

    @cached_property
    def experiment_id(self) -> str:
        """MLflow's id of the experiment, made where it is missing."""
        client = self.client
        with self._first_contact():
            known = client.get_experiment_by_name(self.experiment)
            if known:
                return str(known.experiment_id)
            place = None if self.uri.startswith("http") else Path(self.artifacts).resolve().as_uri()
            return str(client.create_experiment(self.experiment, tags=EXPERIMENT_TAGS, artifact_location=place))

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

    def training_logger(self, folder: Path, run_name: str, params: dict[str, Any]) -> Any:
        """Lightning's MLflow logger for the curves of the training in `folder`; a resumed training goes on in its run."""
        from pytorch_lightning.loggers import MLFlowLogger
        from pytorch_lightning.utilities import rank_zero_only

        memory = folder / "mlflow_run_id"
        if getattr(rank_zero_only, "rank", 0) == 0 and not memory.exists():
            run = self._create_run(run_name, {"qexp.kind": "train", "qexp.status": "started"})
            folder.mkdir(parents=True, exist_ok=True)
            memory.write_text(run)
            self._log(run, flatten(params), {})
        run_id = memory.read_text() if memory.exists() else None
        return MLFlowLogger(self.experiment, run_name, self.uri, run_id=run_id)

    def log(self, record: Record, folder: Path) -> None:
        """One finished, unsupported or failed run with its params, metrics, tags and the files in `folder`, where it is noted: once,
        however often this is called. What an earlier call left behind, when it was killed, is replaced."""
        note = folder / NOTE
        with FileLock(note.with_suffix(".lock")):
            noted = json.loads(note.read_text()) if note.exists() else {}
            if noted.get("uri") == self.uri and noted["run"]:
                return
            place = f"{record.sweep}/{folder.name}"
            whole = self._logged_whole(place) if noted.get("uri") == self.uri else ""
            write_json(note, {"uri": self.uri, "run": whole})
            if whole:
                return
            tags = {
                "qexp.kind": record.kind, "qexp.status": record.status, "qexp.key": record.key, "qexp.sweep": record.sweep,
                "qexp.reason": record.reason, "qexp.artifact": record.artifact, "qexp.place": place,
            }  # fmt: skip
            run = self._create_run(record.label, tags)
            self._log(run, {**flatten(record.config), **record.params}, record.metrics)
            for file in sorted(folder.iterdir()):
                if file.is_file() and not file.name.startswith("."):
                    self.client.log_artifact(run, str(file))
            self.client.set_terminated(run, "FAILED" if record.status == "failed" else "FINISHED")
            write_json(note, {"uri": self.uri, "run": run})

    def _logged_whole(self, place: str) -> str:
        """The id of the run of the record in that place, if it was ended; one that was not is deleted."""
        whole = ""
        for run in self.client.search_runs([self.experiment_id], f"tags.`qexp.place` = '{place}'"):
            if run.info.status == "RUNNING":
                self.client.delete_run(run.info.run_id)
            else:
                whole = str(run.info.run_id)
        return whole

    def log_sweep(self, sweep: str, records: list[Record], markdown: str, files: list[Path]) -> None:
        """The summary run of a sweep: its description is the result table and links the comparison of its runs."""
        found = list(self.client.search_runs([self.experiment_id], f"tags.`qexp.sweep` = '{sweep}' and tags.`qexp.kind` != 'sweep'"))
        for record in records:
            if record.reused:  # its run is that of an earlier sweep
                found += self.client.search_runs([self.experiment_id], f"tags.`qexp.key` = '{record.key}'", max_results=1)
        runs = quote(json.dumps([run.info.run_id for run in found]))
        experiments = quote(json.dumps([self.experiment_id]))
        link = f"\n\n[Compare these runs](/#/compare-runs?runs={runs}&experiments={experiments})"
        note = described(markdown, link)
        status = "failed" if any(record.status == "failed" for record in records) else "finished"
        reused = " ".join(run.info.run_id for run in found if run.data.tags["qexp.sweep"] != sweep)
        tags = {"qexp.kind": "sweep", "qexp.sweep": sweep, "qexp.status": status, "qexp.reused": reused, "mlflow.note.content": note}
        run = self._create_run(f"sweep {sweep}", tags)
        for file in files:
            self.client.log_artifact(run, str(file))
        self.client.set_terminated(run)

    def _create_run(self, name: str, tags: dict[str, str]) -> str:
        tags = {key: value[:TAG_LENGTH] for key, value in tags.items()}
        return str(self.client.create_run(self.experiment_id, tags=tags, run_name=name).info.run_id)

    def _log(self, run: str, params: dict[str, Any], metrics: dict[str, float]) -> None:
        """As few requests as MLflow allows: through a server each costs tens of milliseconds."""
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        rows = [Param(name, str(value)[:PARAM_LENGTH]) for name, value in params.items()]
        self.client.log_batch(run, [Metric(name, value, now, 0) for name, value in metrics.items()], rows[:PARAMS_PER_REQUEST])
        for start in range(PARAMS_PER_REQUEST, len(rows), PARAMS_PER_REQUEST):
            self.client.log_batch(run, params=rows[start : start + PARAMS_PER_REQUEST])


def described(markdown: str, link: str) -> str:
    """A run's description: the table, cut between its lines where MLflow would not take all of it, and the link if that has room."""
    link = link if len(link) < TAG_LENGTH // 2 else "\n\nCompare these runs: select them by the tag qexp.sweep."
    if len(markdown) + len(link) > TAG_LENGTH:
        cut = "\n\nThe rest is in the artifact results.md."
        markdown = markdown[: TAG_LENGTH - len(link) - len(cut)].rpartition("\n")[0] + cut
    return markdown + link


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with keys joined by dots; empty values are left out, as MLflow has no null."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        elif value is not None:
            flat[f"{prefix}{key}"] = value
    return flat
