"""Shows a report on the screen."""

from __future__ import annotations

import sys

from rich.console import Console

from qexp.report.matrix import device_matrix
from qexp.report.render import rich_table
from qexp.report.runs import Run
from qexp.report.seeds import seeds_table
from qexp.report.table import table, unfinished
from qexp.report.verdict import Verdict, caution
from qexp.report.write import parts

WIDE = 1000  # characters of a line that is not printed on a terminal
ON_SCREEN = 6  # verdicts that are shown; the files have all of them


def screen() -> Console:
    """The console. If it prints to a file, it does not fold wide lines."""
    return Console(width=None if sys.stdout.isatty() else WIDE)


def show(runs: list[Run], verdicts: list[Verdict], group: tuple[str, ...] = ()) -> None:
    """Print the tables, the runs that did not finish, the means over seeds, and the verdicts."""
    console = screen()
    for title, records in parts(runs, group).items():
        count = f"{len(records)} run{'s' * (len(records) > 1)}"
        console.print()
        if any(record.status == "finished" for record in records):
            console.print(rich_table(table(records, f"{title}: {count}" if title else count), console.width))
        for line in unfinished(records):
            console.print(line, highlight=False, markup=False)
    if matrix := device_matrix([run.record for run in runs]):
        console.print()
        console.print(rich_table(matrix))
    if seeds := seeds_table([run.record for run in runs]):
        console.print()
        console.print(rich_table(seeds))
    show_verdicts(console, verdicts)


def show_verdicts(console: Console, verdicts: list[Verdict]) -> None:
    for verdict in verdicts[:ON_SCREEN]:
        console.print(f"\n{verdict.title}", style="bold", highlight=False, markup=False)
        for sentence in verdict.sentences:
            console.print(f"  {sentence}", highlight=False, markup=False)
    if len(verdicts) > ON_SCREEN:
        console.print(
            f"\n{len(verdicts) - ON_SCREEN} more verdicts are in results.md and report.html.", highlight=False
        )
    if caution(verdicts):
        console.print(f"\n{caution(verdicts)}", style="dim", highlight=False)
