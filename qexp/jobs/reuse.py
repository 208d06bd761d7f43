"""Finds runs that ended before by the key of everything that decides their result.

A sweep that is started again therefore runs only what is missing.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from qexp.files import file_digest, write_json
from qexp.records import Record
from qexp.tracking.store import read_record
from qexp.types import UserError


class EndedRuns:
    """The runs below `outputs` that ended. A small file for each key names the run's record and its digest."""

    def __init__(self, outputs: Path):
        self.outputs, self.folder = outputs, outputs / "cache" / "runs"

    @contextmanager
    def claim(self, key: str) -> Iterator[None]:
        """Make all others that claim the same key, even in other sweeps, wait until the block ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f".{key}.lock"):
            yield

    def find(self, key: str) -> Record | None:
        """Find the record of a key.

        A damaged record is set aside, with a message.

        Returns:
            The record, or None if there is none, it is damaged, or its artifact is gone.
        """
        try:
            entry = json.loads((self.folder / f"{key}.json").read_text())
            file = self.outputs / entry["record"]
            if not file.exists():
                return None
            if file_digest(file) != entry["digest"]:
                raise UserError(f"{file} is not what was written")
            record = read_record(file)
        except FileNotFoundError:
            return None
        except (UserError, ValueError, KeyError, TypeError) as error:
            self._set_aside(key, error)
            return None
        if record.artifact:
            # The path is relative to where that run was started.
            places = [Path(record.artifact), self.outputs / "artifacts" / Path(record.artifact).name]
            artifact = next((str(place) for place in places if place.exists()), None)
            if artifact is None:
                return None
            record = replace(record, artifact=artifact)
        return replace(record, reused=str(Path(entry["record"]).parent))

    def _set_aside(self, key: str, error: Exception) -> None:
        entry = self.folder / f"{key}.json"
        os.replace(entry, entry.with_suffix(".damaged"))
        print(f"  an earlier result is damaged and is computed again: {error}", file=sys.stderr, flush=True)

    def remember(self, record: Record, file: Path) -> None:
        """Let `find` find the record from now on.

        A failure never takes the place of a result, nor does one that was disturbed take that of another.

        Args:
            record: Record of the run that ended.
            file: File that holds the record.
        """
        known = self.find(record.key) if record.status == "failed" or record.disturbed else None
        if known is None or known.status == "failed" or (known.disturbed and record.status == "finished"):
            place = os.path.relpath(file, self.outputs)
            write_json(self.folder / f"{record.key}.json", {"record": place, "digest": file_digest(file)})

    def first_in(self, sweep: Path, key: str, folder: Path) -> bool:
        """Whether no job before this one in the sweep had the key. To be called within `claim`.

        A job that is requeued asks twice, and gets the same answer both times.

        Args:
            sweep: Folder of the sweep.
            key: Key of the job's result.
            folder: Folder of the job.
        """
        mark = sweep / ".keys" / key
        if not mark.exists():
            write_json(mark, folder.name)
        return bool(json.loads(mark.read_text()) == folder.name)
