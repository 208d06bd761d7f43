"""Runs that ended before, found by the key of all that determines their result: the same sweep again does only what is missing."""

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
from qexp.tracking.store import read_record
from qexp.types import Record, UserError


class EndedRuns:
    """One small file per key below `outputs`, which names the run's record and its digest."""

    def __init__(self, outputs: Path):
        self.outputs, self.folder = outputs, outputs / "cache" / "runs"

    @contextmanager
    def claim(self, key: str) -> Iterator[None]:
        """Whoever else asks for the same key waits until the block ends, also in another sweep."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f".{key}.lock"):
            yield

    def find(self, key: str) -> Record | None:
        """The record of that key, if it is still what was written and its artifact is there; a damaged one is set aside."""
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
            # Its path is as seen from where that run was started.
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
        """Find the run that ended with this record, which `file` holds, from now on; a failure never takes the place of a result."""
        known = self.find(record.key) if record.status == "failed" else None
        if known is None or known.status == "failed":
            place = os.path.relpath(file, self.outputs)
            write_json(self.folder / f"{record.key}.json", {"record": place, "digest": file_digest(file)})

    def first_in(self, sweep: Path, key: str, folder: Path) -> bool:
        """Whether no other job of the sweep than that of `folder`, which comes twice if it is requeued, has this key. Within `claim`."""
        mark = sweep / ".keys" / key
        if not mark.exists():
            write_json(mark, folder.name)
        return bool(json.loads(mark.read_text()) == folder.name)
