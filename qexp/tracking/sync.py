"""Records that tracking has not seen yet, because it could not be reached or the program was killed, are logged now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from qexp.tracking.store import noted, read_record
from qexp.types import Record, UserError, first_line


class Tracking(Protocol):
    def log(self, record: Record, folder: Path) -> None: ...


def sync(
    outputs: Path, tracking_of: Callable[[dict[str, Any]], Tracking], uri: str | None = None
) -> tuple[int, list[str]]:
    """Log every record below `outputs` that is a run of its own; those that are there already stay as they are.

    tracking_of: makes the tracking that a record's config asks for; uri: where they all shall be, instead of where each was told to.
    How many of them are there now, and why others are not, by place.
    """
    known: dict[str, Tracking] = {}
    failures: dict[str, str] = {}
    count = 0
    for file in sorted((outputs / "sweeps").glob("*/*/record.json")):
        note = noted(file.parent)
        if note.get("run") and uri in (None, note["uri"]):  # reading thousands of records would take seconds
            count += 1
            continue
        try:
            record = read_record(file)
        except UserError as error:
            failures[str(file)] = str(error)
            continue
        config = record.config.get("tracking")
        place = str(config)
        if (
            record.reused or record.status == "compressed" or not config or place in failures
        ):  # it would only fail again
            continue
        try:
            if place not in known:
                known[place] = tracking_of(config)
            known[place].log(record, file.parent)
            count += bool(noted(file.parent).get("run"))  # not so where a run asked for no tracking
        except Exception as error:
            failures[place] = f"{config.get('uri', place)}: {first_line(error)}"
    return count, list(failures.values())
