"""Logs records on disk to MLflow, from the command line.

qexp sync [outputs=FOLDER] [uri=URI]
    Log all records on disk that tracking has not seen yet.
qexp import FILE ... [outputs=FOLDER] [uri=URI]
    Add what a deployment's benchmark.py wrote on its device to the sweep that the network comes from, and log it.

outputs: folder of the sweeps' outputs (default: outputs)
uri: where to log, instead of where each run was told to, and also for runs of tracking=none
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf

from qexp.places import conf_file
from qexp.tracking.imported import import_record
from qexp.tracking.sync import Tracking, sync
from qexp.types import UserError, first_line


def main(words: list[str]) -> int:
    given = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    files = [Path(word) for word in words[1:] if "=" not in word]
    if (
        words[:1] not in (["sync"], ["import"])
        or bool(files) != (words[0] == "import")
        or not {*given} <= {"outputs", "uri"}
    ):
        print(__doc__, file=sys.stderr)
        return 2
    outputs = Path(given.get("outputs", "outputs"))
    if not (outputs / "sweeps").is_dir():
        print(f"error: {outputs} holds no sweeps; give outputs=FOLDER.", file=sys.stderr)
        return 1

    def tracking_of(config: dict[str, Any] | None) -> Tracking:
        if config and "uri" not in given:
            return instantiate(config)
        default = OmegaConf.load(conf_file("tracking/mlflow.yaml"))
        composed = OmegaConf.create({"outputs": str(outputs), "tracking": default})
        return instantiate(
            OmegaConf.merge(composed, {"tracking": {"uri": given["uri"]} if "uri" in given else {}}).tracking
        )

    return import_all(files, outputs, tracking_of) if files else sync_all(outputs, tracking_of, given.get("uri"))


def sync_all(outputs: Path, tracking_of: Callable[[dict[str, Any]], Tracking], uri: str | None) -> int:
    count, failures = sync(outputs, tracking_of, uri)
    print(f"{count} runs are in tracking")
    for failure in failures:
        print(f"not logged: {failure}", file=sys.stderr)
    return 1 if failures else 0


def import_all(files: list[Path], outputs: Path, tracking_of: Callable[[dict[str, Any] | None], Tracking]) -> int:
    failed = False
    for file in files:
        try:
            record, folder = import_record(file, outputs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
            continue
        known = "with the accuracy of the same file" if "top1" in record.metrics else record.notes.get("top1", "")
        latency = (record.only_shown | record.metrics)["latency_ms"]
        print(f"{folder}: {record.label} on {record.environment['host']}, {latency:.4g} ms, {known}")
        try:
            tracking_of(record.config.get("tracking")).log(record, folder)
        except Exception as error:
            print(f"not logged: {first_line(error)}; `sync` does that later", file=sys.stderr)
            failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
