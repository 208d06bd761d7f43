"""What stands around the jobs of a command: what it is going to do, and the table of what came out."""

from __future__ import annotations

import functools
import math
import sys
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from qexp.errors import LEFT_OPEN
from qexp.report.best import LEGEND, Search
from qexp.report.plot import accuracy_plot, bits_plots, latency_plots
from qexp.report.table import csv_table, markdown_table, rich_table, unfinished
from qexp.tracking.store import read_records
from qexp.tracking.sync import sync
from qexp.types import Record, first_line

BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


class Summary(Callback):
    """Hydra's callback; it ends the program with exit code 1 if a job failed."""

    # Hydra turns an error in here into a warning.

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        check_tracking(config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        check_tracking(config)
        if config.hydra.sweeper._target_ == BASIC:  # a search tells itself what it will do
            print(plan(config), flush=True)
        try:
            instantiate(config.tracking).prepare()
        except Exception as error:
            print(f"tracking is not there, records wait on disk: {first_line(error)}", file=sys.stderr, flush=True)
        else:
            log_what_waits(Path(config.outputs))
        LEFT_OPEN.append(functools.partial(self.on_multirun_end, config))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        # Hydra keeps what every job of a sweep has returned, and a config takes hundreds of kilobytes.
        job_return.cfg = job_return.hydra_cfg = None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        LEFT_OPEN.clear()
        self.finish(config, Path(config.hydra.sweep.dir), log=True)

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        self.finish(config, Path(config.hydra.run.dir).parent, log=False)

    def finish(self, config: DictConfig, sweep: Path, log: bool) -> None:
        """Write and show the table of all records below `sweep`; `log`: as the sweep's summary run too."""
        records, search = read_records(sweep), Search.read(sweep)
        if not records:
            return
        markdown = search.markdown() + markdown_table(search.marked(records)) if search else markdown_table(records)
        files = [sweep / "results.md", sweep / "results.csv"]
        files[0].write_text(markdown)
        files[1].write_text(csv_table(records))
        if accuracy_plot(records, sweep / "accuracy.png"):
            files.append(sweep / "accuracy.png")
        files += [*([] if search else bits_plots(records, sweep)), *latency_plots(records, sweep)]
        show(config, records, sweep, search)
        if all(record.status == "compressed" for record in records):
            return  # nothing to compare yet
        tracking = instantiate(config.tracking)
        try:
            page = tracking.log_sweep(sweep.name, records, markdown, files) if log else ""
            if address := tracking.address(page):
                print(f"Compare the runs in a browser: {address}")
        except Exception as error:
            print(f"the sweep's summary is not in tracking, only in {sweep}: {first_line(error)}", file=sys.stderr, flush=True)
        if any(record.status == "failed" for record in records):
            sys.exit(1)


def check_tracking(config: DictConfig) -> None:
    """End the program before it computes what it could not log."""
    for key in OmegaConf.missing_keys(config.tracking):
        sys.exit(f"error: {key} is not set. Give {key}=VALUE.")


def log_what_waits(outputs: Path) -> None:
    """Records of earlier sweeps that tracking did not take, or that were written just before a kill."""
    _, failures = sync(outputs, instantiate)
    for failure in failures:
        print(f"records of earlier runs wait for tracking (python -m qexp.tracking sync): {failure}", file=sys.stderr, flush=True)


def plan(config: DictConfig) -> str:
    """One line: what is swept, and how many runs that makes."""
    swept = [f"{key}={values}" for key, values in (config.hydra.sweeper.params or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*swept, *config.hydra.overrides.task])
    axes = {o.key_or_group: list(o.sweep_string_iterator()) for o in overrides if o.is_sweep_override()}
    runs = math.prod(len(values) for values in axes.values())
    swept_through = " × ".join(f"{key} {', '.join(values)}" for key, values in axes.items())
    return f"{runs} runs: {swept_through}" if axes else "1 run"


def show(config: DictConfig, records: list[Record], sweep: Path, search: Search | None) -> None:
    """Print the table, the runs that did not finish, what a search found, and where everything lies."""
    console = Console(width=None if sys.stdout.isatty() else 170)
    console.print()
    if any(record.status == "finished" for record in records):
        rows = search.marked(records) if search else records
        console.print(rich_table(rows, f"{len(records)} run{'s' * (len(records) > 1)}"))
    for line in unfinished(records):
        console.print(line, highlight=False, markup=False)
    if search:
        console.print(f"{LEGEND}\n")
        console.print(search.rich_table())
    print(f"\nRecords, tables and artifacts: {sweep} and {config.outputs}/artifacts")
