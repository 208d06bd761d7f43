"""Reads and writes the records on disk, the truth of which MLflow, tables and reports are only views."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from qexp.artifact import Artifact
from qexp.files import RECORDS, not_writable, write_json
from qexp.metrics import metrics_of
from qexp.records import Record
from qexp.types import UserError, other_version

NOTE = ".mlflow.json"  # file beside a record that says where it was logged


def write_record(record: Record, folder: Path) -> None:
    """Write a record's texts and `record.json` into the run's own folder. The record comes last and in one piece.

    Raises:
        UserError: Nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in record.texts.items():
            (folder / name).write_text(text)
    except OSError as error:
        raise not_writable(folder, error) from error
    write_json(folder / "record.json", record.to_json())


def noted(folder: Path) -> dict[str, str]:
    """Read where the record in `folder` was logged.

    Returns:
        The tracking URI as `uri`, and the id of the run as `run`, which is empty while the run is incomplete. If the
        record was never logged, nothing.
    """
    try:
        return json.loads((folder / NOTE).read_text())
    except FileNotFoundError:
        return {}


def read_record(file: Path) -> Record:
    """Read a record from its file.

    Raises:
        UserError: The file holds no record of this version of qexp.
    """
    values: Any = None
    try:
        values = json.loads(file.read_text())
        record = Record.from_json(values)
        metrics_of([record])  # so that what it says of its metrics itself is right for everyone who reads it
        return record
    except (ValueError, KeyError, TypeError) as error:
        environment = values.get("environment") if isinstance(values, dict) else None
        told = other_version(environment.get("versions") if isinstance(environment, dict) else None)
        raise UserError(
            f"{file} holds no record of this version of qexp: {error}.{told} Move it away to go on."
        ) from error


def read_records(sweep: Path) -> list[Record]:
    """Read all records in a sweep's folder, in the order of its jobs."""
    return list(read_folders(sweep).values())


def read_folders(sweep: Path) -> dict[Path, Record]:
    """Like `read_records`, but by the folders of the records."""
    files = sorted(sweep.glob("**/record.json"), key=lambda file: (len(file.parent.name), file.parent.name))
    return {file.parent: read_record(file) for file in files}


def records_of(artifact: Artifact) -> list[Record]:
    """Read the records of all runs of an artifact from its folder, oldest first. Unreadable ones are left out."""
    found = []
    for file in (artifact.folder / RECORDS).glob("*.json"):
        with contextlib.suppress(UserError):
            found.append(read_record(file))
    return sorted(found, key=lambda record: record.created)
