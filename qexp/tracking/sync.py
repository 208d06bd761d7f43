"""Logs records that tracking has not seen yet, because it could not be reached or the program was killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from qexp.records import Record
from qexp.tracking.store import noted, read_record
from qexp.types import UserError, first_line


class Tracking(Protocol):
    def log(self, record: Record, folder: Path) -> None: ...


def sync(
    outputs: Path, tracking_of: Callable[[dict[str, Any]], Tracking], uri: str | None = None
) -> tuple[int, list[str]]:
    """Log every record below `outputs` that is a run of its own. Records that were logged before stay as they are.

    Args:
        outputs: Folder of the sweeps' outputs.
        tracking_of: Makes the tracking that a record's config asks for.
        uri: Tracking URI where all records should end up, or None for the one that each run was told to use.

    Returns:
        How many records are logged now, and why others are not, with one message for each tracking that failed and for
        each file that cannot be read.
    """
    known: dict[str, Tracking] = {}
    failures: dict[str, str] = {}
    count = 0
    for file in sorted((outputs / "sweeps").glob("*/*/record.json")):
        note = noted(file.parent)
        if note.get("run") and uri in (None, note["uri"]):  # saves reading the record: thousands take seconds
            count += 1
            continue
        try:
            record = read_record(file)
        except UserError as error:
            failures[str(file)] = str(error)
            continue
        config = record.config.get("tracking")
        place = str(config)
        # A tracking that has failed would only fail again.
        if record.reused or record.status == "compressed" or not config or place in failures:
            continue
        try:
            if place not in known:
                known[place] = tracking_of(config)
            known[place].log(record, file.parent)
            count += bool(noted(file.parent).get("run"))  # a run that asked for no tracking has no note
        except Exception as error:
            failures[place] = f"{config.get('uri', place)}: {first_line(error)}"
    return count, list(failures.values())
