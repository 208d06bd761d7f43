"""Records on disk: the truth that MLflow, tables and reports are views of."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from qexp.files import RECORDS, not_writable, write_json
from qexp.metrics import metrics_of
from qexp.types import Artifact, Record, UserError

NOTE = ".mlflow.json"  # beside a record


def write_record(record: Record, folder: Path) -> None:
    """`record.json` and its texts in a run's own folder; the record comes last and in one piece."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in record.texts.items():
            (folder / name).write_text(text)
    except OSError as error:
        raise not_writable(folder, error) from error
    write_json(folder / "record.json", record.to_json())


def noted(folder: Path) -> dict[str, str]:
    """Where the record in `folder` was logged: `uri`, and `run`, empty while it is not there as a whole; nothing where it never was."""
    try:
        return json.loads((folder / NOTE).read_text())
    except FileNotFoundError:
        return {}


def read_record(file: Path) -> Record:
    """Errors: UserError where the file holds no record of this version of qexp."""
    try:
        record = Record.from_json(json.loads(file.read_text()))
        metrics_of([record])  # so that what it says of its metrics itself is right for everyone who reads it
        return record
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} holds no record of this version of qexp: {error}. Move it away to go on.") from error


def read_records(sweep: Path) -> list[Record]:
    """All records of a sweep's folder in the order of its jobs."""
    return list(read_folders(sweep).values())


def read_folders(sweep: Path) -> dict[Path, Record]:
    """The same by the folders that they lie in."""
    files = sorted(sweep.glob("**/record.json"), key=lambda file: (len(file.parent.name), file.parent.name))
    return {file.parent: read_record(file) for file in files}


def records_of(artifact: Artifact) -> list[Record]:
    """The records of all runs of an artifact, which lie in its folder, the oldest first; what cannot be read is left out."""
    found = []
    for file in (artifact.folder / RECORDS).glob("*.json"):
        with contextlib.suppress(UserError):
            found.append(read_record(file))
    return sorted(found, key=lambda record: record.created)
