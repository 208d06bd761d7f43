"""Adds a record that a deployment's benchmark.py wrote on its device to the sweep whose network it timed.

The record comes from elsewhere. Nothing in it is run, and of what it says about the network only the digest of the file
counts.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from qexp.artifact import Artifact
from qexp.files import RECORDS, link_instead
from qexp.metrics import METRICS, metrics_of
from qexp.records import Record
from qexp.tracking.store import read_record, records_of, write_record
from qexp.types import UserError, digest

# What a device can measure of a network: times and memory, but no ratios to another network.
MEASURED = {name for name, metric in METRICS.items() if metric.per_machine and metric.unit != "x"}
PARAMS = ("model", "data", "image_size", "method", "bits", "label")


def import_record(file: Path, outputs: Path) -> tuple[Record, Path]:
    """Add a device's record to the comparison. Importing it again changes nothing.

    Accuracy and size are those of the artifact's own record below `outputs`, if the device timed the very same file.

    Args:
        file: Record that benchmark.py wrote.
        outputs: Folder with artifacts and sweeps.

    Returns:
        The record as it was added, and its folder.

    Raises:
        UserError: `file` is not such a record.
    """
    device = checked(file)
    measured_file = device.config["deployment"]
    artifact = artifact_of(measured_file, outputs)
    own = own_record(artifact, device) if artifact else None
    host = device.environment["host"]
    if own:
        known = metrics_of([own])
        carried = [replace(m, samples=()) for m in own.measurements if known[m.name].portable]
        where = own.environment.get("host")
        notes = {
            "carried": f"accuracy, size and coverage are those of the same file on the same engine, measured on {where}"
        }
        params, config = (
            own.params,
            {**own.config, **device.config, **{k: device.params[k] for k in ("batch_size", "threads")}},
        )
    else:
        reason = "not those of this file" if artifact else "not there"
        carried, notes = (
            [],
            {"top1": f"not known: the records of the artifact {measured_file['artifact']} are {reason}"},
        )
        params, config = {name: device.params[name] for name in PARAMS if name in device.params}, device.config
    params = {**params, **{name: device.params[name] for name in ("engine", "batch_size", "threads")}}
    label = " · ".join(
        [str(params["model"]), str(params["label"]), str(params["engine"]), f"batch {params['batch_size']}"]
    )
    sweep = own.sweep if own and (outputs / "sweeps" / own.sweep).is_dir() else f"device-{folder_name(host)}"
    record = replace(
        device, sweep=sweep, label=label, params=params, config=config, measurements=(*device.measurements, *carried),
        artifact=str(artifact.folder) if artifact else "", notes={"speedup": device.notes.get("speedup", ""), **notes},
        texts={}, reused="",
    )  # fmt: skip
    folder = outputs / "sweeps" / sweep / f"{folder_name(host)}-{digest([device.key, device.created])[:8]}"
    write_record(record, folder)
    if artifact:
        link_instead(folder / "record.json", artifact.folder / RECORDS / f"{folder.name}.json")
    return record, folder


def checked(file: Path) -> Record:
    """Read the record in `file`, and check that it has the form that a deployment's benchmark.py writes.

    Raises:
        UserError: The file cannot be read, or the record has another form.
    """
    try:
        record = read_record(file)
        deployment: dict[str, Any] = record.config["deployment"]
        texts = [record.environment["host"], record.params["engine"], record.created, record.key]
        texts += [record.params[name] for name in ("model", "label")]
        texts += [deployment[name] for name in ("artifact", "file", "sha256")]
        whole = (record.params["batch_size"], record.params["threads"])
        figures = [m for m in record.measurements if m.name in MEASURED and math.isfinite(m.value)]
        right = all(isinstance(text, str) and text for text in texts) and all(
            isinstance(n, int) and n > 0 for n in whole
        )
        if (
            not right
            or record.status != "finished"
            or "latency_ms" not in record.only_shown | record.metrics
            or len(figures) != len(record.measurements)
        ):
            raise ValueError("its values are not those that benchmark.py writes")
    except OSError as error:
        raise UserError(f"Cannot read {file}: {error.strerror}.") from error
    except (UserError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is no record of a deployment's benchmark.py: {error}.") from error
    known = {"deployment": deployment, "latency": record.config.get("latency")}
    return replace(record, kind="benchmark", config=json.loads(json.dumps(known)), reason="")


def artifact_of(deployment: dict[str, str], outputs: Path) -> Artifact | None:
    """The artifact that was deployed. None if it is not below `outputs`."""
    name = deployment["artifact"]
    folder = outputs / "artifacts" / name
    return Artifact.read(folder) if Path(name).name == name and (folder / "artifact.json").exists() else None


def own_record(artifact: Artifact, device: Record) -> Record | None:
    """The newest record of the artifact on the device's engine that no device wrote.

    A record with the device's batch size comes before all others. The result is None if there is no such record, or if
    the file that was timed is not the artifact's.
    """
    deployment = device.config["deployment"]
    if artifact.files.get(deployment["file"]) != deployment["sha256"]:
        return None
    found = [
        r
        for r in records_of(artifact)
        if r.params["engine"] == device.params["engine"] and "deployment" not in r.config
    ]
    return max(found, key=lambda r: (r.params["batch_size"] == device.params["batch_size"], r.created), default=None)


def folder_name(host: str) -> str:
    return re.sub(r"[^\w-]", "_", host)[:60]
