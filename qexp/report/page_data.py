"""Collects what report.html shows, as plain values.

Every text, layer table and machine is stored once, however many runs share it.
"""

from __future__ import annotations

import base64
import csv
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qexp.metrics import Metric, metrics_of, own_metrics
from qexp.records import Record
from qexp.report.axes import benefits, costs, same
from qexp.report.layers import bits_of
from qexp.report.options import differing_options, option_suffix
from qexp.report.reproduce import command_of
from qexp.report.runs import Run, differing
from qexp.report.table import NAMES, legend, metric_columns, name_columns, noisy, table
from qexp.types import digest

TEXTS = ("layers.csv", "sensitivity.csv", "plan.yaml", "operators.json")
OPERATORS = 20  # rows of each run's table of operators: those that take longest
PICTURES_MB = 10.0  # histograms that the page holds itself; it links to the others
MOMENTARY = ("load", "affinity", "temperature_c")  # parts of a machine's description that change all the time
FACETS = (
    "model",
    "label",
    "bits",
    "engine",
    "batch_size",
    "data",
    "image_size",
    "threads",
    "seed",
    "device",
    "machine",
    "status",
    "sweep",
    "kind",
)
HOVER = ("top1", "latency_ms", "size_mb", "memory_mb")  # metrics that a point's label shows besides those of the axes
CURVES = (
    "latency_ms", "latency_ms_per_image", "latency_p99_ms", "throughput_ips", "memory_mb", "energy_mj_per_image",
)  # fmt: skip
TITLES = NAMES | {
    "data": "data",
    "image_size": "image size",
    "device": "device",
    "machine": "machine",
    "threads": "threads",
}


def page_data(runs: Sequence[Run], page: Path) -> dict[str, Any]:
    """Collect everything that the page shows.

    Args:
        runs: Runs to show.
        page: Folder of report.html.
    """
    known = Known(page)
    records = [run.record for run in runs]
    options = differing_options(records)
    metrics = metrics_of(records)
    own = [metric.name for metric in own_metrics(metrics)]
    facets = [name for name in dict.fromkeys((*FACETS, *options)) if name in differing([*runs], [name])]
    return {
        "rows": [row_of(run, index, options, known) for index, run in enumerate(runs)],
        "columns": columns_of(records), "legend": legend(records),
        "metrics": {name: metric_data(metric) for name, metric in metrics.items()},
        "facets": [{"name": name, "title": TITLES.get(name, options.get(name, name))} for name in facets],
        "costs": [metric.name for metric in costs(runs)], "benefits": [metric.name for metric in benefits(runs)],
        "hover": [name for name in (*HOVER, *own) if name in metrics],
        "curves": [name for name in (*CURVES, *own) if name in metrics and metrics[name].per_machine],
        "texts": known.texts, "machines": known.machines,
    }  # fmt: skip


def metric_data(metric: Metric) -> dict[str, Any]:
    """What the page needs to show values of a metric, and to compare them."""
    return {
        "name": metric.name, "title": metric.axis_title, "unit": metric.unit, "factor": metric.factor,
        "low": metric.low, "high": metric.high, "same": same(metric),
    }  # fmt: skip


def columns_of(records: list[Record]) -> list[dict[str, Any]]:
    """Describe the columns of the page's table.

    First come those of the other tables, each with its cells, as shown, and the places of the best cells among the
    finished runs. All other metrics follow as hidden columns.
    """
    shown, names = table(records), name_columns(records)
    keys = [*names, *(metric.name for metric in metric_columns(records))]
    columns: list[dict[str, Any]] = []
    for place, key in enumerate(keys):
        title, *cells = shown.column(place)
        columns.append({
            "key": "machine" if key == "host" else key, "title": title, "metric": place >= len(names), "cells": cells,
            "best": sorted(row for row, column in shown.marks if column == place),
        })  # fmt: skip
    others = dict.fromkeys(name for record in records for name in record.metrics if name not in keys)
    return columns + [{"key": name, "title": name, "metric": True, "hidden": True} for name in others]


class Known:
    """Collects texts and machines, each of them once, and pictures, which the page holds as long as there is room.

    Args:
        page: Folder of report.html.
    """

    def __init__(self, page: Path):
        self.page, self.texts, self.machines = page, [], []  # type: Path, list[Any], list[dict[str, Any]]
        self.places: dict[str, int] = {}
        self.room = PICTURES_MB * 1e6

    def text(self, value: Any) -> int:
        """Keep a text, or the data read from it, and return its place in `texts`."""
        return self._place(value, self.texts)

    def machine(self, environment: dict[str, Any]) -> int:
        """Keep a machine, and return its place in `machines`."""
        return self._place({name: value for name, value in environment.items() if name not in MOMENTARY}, self.machines)

    def _place(self, value: Any, among: list[Any]) -> int:
        key = digest([id(among), value])
        if key not in self.places:
            self.places[key] = len(among)
            among.append(value)
        return self.places[key]

    def picture(self, file: Path) -> dict[str, str]:
        self.room -= file.stat().st_size
        if self.room < 0:
            return {"name": file.stem, "link": os.path.relpath(file, self.page)}
        return {"name": file.stem, "source": f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"}


def row_of(run: Run, index: int, options: dict[str, str], known: Known) -> dict[str, Any]:
    record = run.record
    names = {name: value for name, value in run.names.items() if name not in record.metrics}
    texts = {
        Path(name).stem: known.text(read(text))
        for name, text in texts_of(run).items()
        if (read := READERS.get(name, str))
    }
    return {
        "id": index, "name": record.label + option_suffix(record, options), "status": record.status,
        "reason": record.reason,
        "names": {name: names[name] for name in (*FACETS, *options) if name in names},
        "metrics": {name: shortened(value) for name, value in record.metrics.items()},
        "other_kinds": {m.name: m.kind for m in record.measurements if m.kind != "measured"}, "noisy": noisy(record),
        "command": command_of(run), "sweep_command": record.command, "notes": record.notes, "reused": record.reused,
        "place": f"{record.sweep}/{run.folder.name}", "artifact": Path(record.artifact).name, "created": record.created,
        "texts": texts, "machine": known.machine(record.environment),
        "pictures": [known.picture(file) for file in pictures_of(run)],
    }  # fmt: skip


def shortened(value: float) -> float | None:
    """Round to seven digits, more than any metric has. None if the value is not finite, which JSON cannot express."""
    return float(f"{value:.7g}") if math.isfinite(value) else None


def texts_of(run: Run) -> dict[str, str]:
    """Find the tables for people in the record, beside it, or in its artifact's folder."""
    found = {}
    for name in TEXTS:
        places = [run.folder, *artifacts_of(run)] if run.record.status == "finished" else []
        file = next((place / name for place in places if (place / name).is_file()), None)
        text = run.record.texts.get(name) or (file.read_text() if file else "")
        if text:
            found[name] = text
    return found


def artifacts_of(run: Run) -> list[Path]:
    """Folders where the artifact may be, because its path is relative to the folder where the run was started."""
    artifact = run.record.artifact
    return (
        [Path(artifact), run.folder.parents[2] / "artifacts" / Path(artifact).name]
        if artifact and len(run.folder.parents) > 2
        else []
    )


def pictures_of(run: Run) -> list[Path]:
    """Histograms of layers, from the run's folder or from that of the earlier run whose result it reuses."""
    earlier = [run.folder.parents[2] / run.record.reused] if run.record.reused and len(run.folder.parents) > 2 else []
    return next((files for folder in [run.folder, *earlier] if (files := sorted(folder.glob("layer-*.png")))), [])


def layers_of(text: str) -> list[dict[str, Any]]:
    """Read from layers.csv what the page's bars and lines show."""
    return [
        {
            "layer": row["layer"], "kind": row["kind"], "parameters": int(row["parameters"]), "macs": int(row["macs"]),
            "formats": [row["weight"], row["activation"]], "bits": [bits_of(row["weight"]), bits_of(row["activation"])],
            "sqnr_db": [number(row.get(f"{part}_sqnr_db")) for part in ("weight", "input", "output")],
        }
        for row in rows_of(text)
    ]  # fmt: skip


def sensitivity_of(text: str) -> list[dict[str, Any]]:
    return [
        {"layer": row["layer"], "bits": [int(row["weight_bits"]), int(row["activation_bits"])]}
        | {name: number(row[name]) for name in ("loss_change_nats", "sqnr_db")}
        for row in rows_of(text)
    ]


def operators_of(text: str) -> dict[str, Any]:
    rows = sorted(json.loads(text), key=lambda row: -row["self_cpu_time_us"])
    shown = [
        {name: shortened(value) if isinstance(value, float) else value for name, value in row.items()}
        for row in rows[:OPERATORS]
    ]
    return {"rows": shown, "all": len(rows)}


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def number(text: str | None) -> float | None:
    return shortened(float(text)) if text else None


READERS: dict[str, Any] = {"layers.csv": layers_of, "sensitivity.csv": sensitivity_of, "operators.json": operators_of}
