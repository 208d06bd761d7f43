"""Puts the latencies of the same runs on several devices side by side."""

from __future__ import annotations

from collections.abc import Sequence

from qexp.metrics import METRICS
from qexp.records import Record
from qexp.report.render import NONE, Table
from qexp.report.table import OF_DEVICES, best_rows, cell, cell_name, left_columns, name_columns

TITLE = "Latency on each device, ms"
LATENCY = METRICS["latency_ms"]
NOTE = "marked: the fastest on its device among rows of one model and batch size; several if they tie"


def device_matrix(records: Sequence[Record]) -> Table | None:
    """Make a table with a row for each run and a column for each device. None if the records are of one device.

    The best cells of each device are marked, as in the table of all runs.
    """
    timed = [r for r in records if r.status == "finished" and LATENCY.name in r.only_shown | r.metrics]
    devices = list(dict.fromkeys(record.device for record in timed))
    if len(devices) < 2:
        return None
    # Devices have their own numbers of cores, by which threads=auto goes.
    names = {key: title for key, title in name_columns(timed).items() if key not in (*OF_DEVICES, "threads")}
    rows: dict[tuple[str, ...], dict[str, Record]] = {}
    for record in timed:  # if a run was repeated, its last record counts
        rows.setdefault(tuple(cell_name(key, record) for key in names), {})[record.device] = record
    shown = [record for row in rows.values() for record in row.values()]
    best = {id(shown[place]) for place in best_rows(LATENCY, shown)}
    first = len(names)
    places = {
        (i, first + j): row[device]
        for i, row in enumerate(rows.values()) for j, device in enumerate(devices) if device in row
    }  # fmt: skip
    cells = [
        (*name, *(cell(LATENCY, row[device]) if device in row else NONE for device in devices))
        for name, row in rows.items()
    ]
    return Table(
        (*names.values(), *devices), tuple(cells),
        marks=frozenset(place for place, record in places.items() if id(record) in best),
        left=left_columns(names, timed), title=TITLE, notes=(NOTE,),
        faint=frozenset(place for place, record in places.items() if LATENCY.name in record.only_shown),
    )  # fmt: skip
