"""What stands around the jobs of a command: what it is going to do, and the table of what came out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from qexp.report.table import csv_table, markdown_table, rich_table, unfinished
from qexp.tracking.store import read_records
from qexp.types import Record


class Summary(Callback):
    """Hydra's callback; it ends the program with exit code 1 if a job failed."""

    # Hydra turns an error in here into a warning.

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        instantiate(config.tracking).prepare()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        self.finish(config, Path(config.hydra.sweep.dir), log=True)

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        self.finish(config, Path(config.hydra.run.dir).parent, log=False)

    def finish(self, config: DictConfig, sweep: Path, log: bool) -> None:
        """Write and show the table of all records below `sweep`; `log`: as the sweep's summary run too."""
        records = read_records(sweep)
        if not records:
            return
        files = {"results.md": markdown_table(records), "results.csv": csv_table(records)}
        for name, text in files.items():
            (sweep / name).write_text(text)
        show(config, records, sweep)
        if log:
            instantiate(config.tracking).log_sweep(sweep.name, records, files["results.md"], files)
        if any(record.status == "failed" for record in records):
            sys.exit(1)


def show(config: DictConfig, records: list[Record], sweep: Path) -> None:
    """Print the table, the runs that did not finish, and where everything lies."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print()
    console.print(rich_table(records, f"{len(records)} runs"))
    for line in unfinished(records):
        console.print(line, highlight=False, markup=False)
    print(f"\nRecords, tables and artifacts: {sweep} and {config.outputs}/artifacts")
    if "uri" in config.tracking:
        print(f"Compare the runs in a browser: uv run mlflow ui --backend-store-uri {config.tracking.uri}")
