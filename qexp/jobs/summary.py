"""Runs before and after the jobs of a command: prints what it is going to do, and reports what came out."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from qexp.errors import LEFT_OPEN
from qexp.jobs.heat import run_heats
from qexp.report.best import LEGEND, Search
from qexp.report.reference import Reference
from qexp.report.render import rich_table
from qexp.report.runs import Run, runs_of
from qexp.report.screen import screen, show
from qexp.report.write import Style, write_report
from qexp.tracking.sync import sync
from qexp.types import UserError, first_line, typed
from qexp.within_limits.answer import PICTURE, Answer

SEARCHES = "hydra_plugins.qexp_search."  # the sweepers that print a plan of their own


class Summary(Callback):
    """Hydra's callback around jobs. It ends the program with exit code 1 if a job failed.

    Args:
        shows: Whether it prints what came out, or leaves that, and what to do about failed jobs, to its caller.
    """

    def __init__(self, shows: bool):
        self.shows = shows

    # Hydra turns an exception in a callback into a warning, so that only sys.exit ends the program.

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        check_end(config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        check_end(config)
        if not config.hydra.sweeper._target_.startswith(SEARCHES):
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
        silent = contextlib.ExitStack()
        if not self.shows:
            silent.enter_context(contextlib.redirect_stdout(io.StringIO()))
            silent.enter_context(contextlib.suppress(SystemExit))
        with silent:
            self.finish(config, Path(config.hydra.sweep.dir), log=True)

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        self.finish(config, Path(config.hydra.run.dir).parent, log=False)

    def finish(self, config: DictConfig, sweep: Path, log: bool) -> None:
        """Write and show the report on all records of a sweep.

        Args:
            config: Config of the command.
            sweep: Folder of the sweep.
            log: Whether tracking also logs the report, as the sweep's summary run.
        """
        runs, search, answer = runs_of(sweep), Search.read(sweep), Answer.read(sweep)
        if not runs:
            return
        if config.heat.rows > 1 and not search:
            try:
                run_heats(config, runs, sweep)
            except Exception as error:  # the table of what was measured must not be lost with it
                print(f"no heat was run: {first_line(error)}", file=sys.stderr, flush=True)
            runs = runs_of(sweep)
        records, style, named = [run.record for run in runs], style_of(config), runs
        if search:
            named = [Run(record, run.folder) for run, record in zip(runs, search.marked(records), strict=True)]
            style = replace(style, lines=False)
        reference = Reference.read(sweep, runs)
        preface = "".join([
            answer.markdown() if answer else "", search.markdown(records) if search else "",
            reference.markdown() if reference else "",
        ])  # fmt: skip
        written = write_report(runs, sweep, f"sweep {sweep.name}", style, preface=preface, named=named)
        show(named, written.verdicts)
        if search:
            print(f"{LEGEND}\n")
            screen().print(rich_table(search.table(records)))
        if reference:
            print()
            screen().print(rich_table(reference.table()))
        if answer:
            print()
            screen().print(rich_table(answer.table()))
            print("\n" + "\n".join(answer.lines))
        print(f"\nRecords, tables and artifacts: {sweep} and {config.outputs}/artifacts")
        for file in written.files:
            if file.suffix == ".html":
                print(f"All of it in a browser: {file}")
        if all(record.status == "compressed" for record in records):
            return  # nothing to compare yet
        tracking = instantiate(config.tracking)
        try:
            files = [*written.files, *sweep.glob(PICTURE)]
            page = tracking.log_sweep(sweep.name, records, written.markdown, files) if log else ""
            if address := tracking.address(page):
                print(f"Compare the runs in a browser: {address}")
        except Exception as error:
            print(
                f"the sweep's summary is not in tracking, only in {sweep}: {first_line(error)}",
                file=sys.stderr,
                flush=True,
            )
        # A trial of a search within limits that failed is a way that did not lead there.
        failed = not answer.chosen if answer else any(record.status == "failed" for record in records)
        if failed:
            sys.exit(1)


def check_end(config: DictConfig) -> None:
    """End the program before any job if the config does not allow logging or reporting what the jobs compute."""
    for key in OmegaConf.missing_keys(config.tracking):
        sys.exit(f"error: {key} is not set. Give {key}=VALUE.")
    try:
        style_of(config)
    except UserError as error:
        sys.exit(f"error: {error}")


def style_of(config: DictConfig) -> Style:
    """Read the style of the report from the config.

    Raises:
        UserError: An option of `report` has no meaning.
    """
    formats = config.report.formats
    return Style(tuple([formats] if isinstance(formats, str) else formats), config.report.points)


def log_what_waits(outputs: Path) -> None:
    """Log the records of earlier sweeps that tracking did not take, or that were written just before a kill."""
    _, failures = sync(outputs, instantiate)
    for failure in failures:
        print(
            f"records of earlier runs wait for tracking ({typed('sync')}): {failure}",
            file=sys.stderr,
            flush=True,
        )


def plan(config: DictConfig) -> str:
    """Say in one line what is swept, and how many runs that makes."""
    swept = [f"{key}={values}" for key, values in (config.hydra.sweeper.params or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*swept, *config.hydra.overrides.task])
    axes = {o.key_or_group: list(o.sweep_string_iterator()) for o in overrides if o.is_sweep_override()}
    runs = math.prod(len(values) for values in axes.values())
    swept_through = " × ".join(f"{key} {', '.join(values)}" for key, values in axes.items() if len(values) > 1)
    # An option that not all choices of a group have makes fewer runs, which the sweeper finds out.
    most = "at most " * any(key.partition(".")[0] in axes and "." in key for key in axes)
    if rows := config.hydra.sweeper.get("rows"):
        names = ", ".join(row.name for row in rows)
        return f"{most}{runs * len(rows)} runs: {names}{' × ' * bool(axes)}{swept_through}"
    return f"{most}{runs} runs: {swept_through}" if runs > 1 else "1 run"
