"""`python -m qexp.report [KEY=VALUE ...]`: what the runs on disk show, as tables, pictures and one page, report.html.

sweep: its name, `latest` (default) or `all`; outputs: the folder of sweeps' outputs (default: outputs); to: the folder to write to
(default: OUTPUTS/reports/SWEEP); where: conditions such as where="model=resnet34, bits<8 and top1>=0.9" on parameters, options, machine,
sweep, status and metrics; group: names whose values part the tables, and whose first gives the colours; x, y: metrics of the plot, such as
x=size_mb y=top1; format: of md,csv,tex,html,png,svg (default: all); points: percentage points of top-1 below fp32 that the verdict
accepts (default: 1).
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from qexp.report.axes import axis_of
from qexp.report.runs import Run, check_names, read_runs, where
from qexp.report.table import rich_table, unfinished
from qexp.report.verdict import CAUTION, Verdict
from qexp.report.write import FORMATS, Style, parts, write_report
from qexp.types import UserError, nearest

DEFAULTS = {
    "sweep": "latest", "outputs": "outputs", "to": "", "where": "", "group": "", "x": "", "y": "", "format": ",".join(FORMATS), "points": "1",
}  # fmt: skip
ON_SCREEN = 6  # verdicts; report.html has them all


def main(words: list[str]) -> int:
    if {"-h", "--help"} & {*words}:
        print(__doc__)
        return 0
    try:
        report(options(words))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def options(words: list[str]) -> dict[str, str]:
    given = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or key not in DEFAULTS:
            raise UserError(f"{word!r} is no option. Give KEY=VALUE. {nearest(key, DEFAULTS)}")
        given[key] = value
    return DEFAULTS | given


def report(given: dict[str, str]) -> None:
    outputs = Path(given["outputs"])
    runs = read_runs(outputs, given["sweep"])
    known = {name for run in runs for name in run.names}
    kept = where(runs, given["where"])
    if not kept:
        raise UserError(f"No run of {len(runs)} is left by where={given['where']!r}.")
    group = tuple(listed(given["group"]))
    check_names(group, known, "group")
    for option in ("x", "y"):
        if given[option]:
            axis_of(given[option], kept, option)
    style = Style(tuple(listed(given["format"])), points_of(given["points"]), given["x"], given["y"], group)
    name = kept[0].record.sweep if given["sweep"] == "latest" else given["sweep"]
    folder = Path(given["to"]) if given["to"] else outputs / "reports" / name
    written = write_report(kept, folder, "all sweeps" if name == "all" else f"sweep {name}", style, given["where"])
    show(kept, group, written.verdicts)
    print("\nWritten: " + ", ".join(str(file) for file in written.files))


def listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def points_of(text: str) -> float:
    try:
        points = float(text)
    except ValueError:
        points = -1
    if not points >= 0:
        raise UserError(f"points={text} is no number of percentage points; give 0 or more, such as points=0.5")
    return points


def show(runs: list[Run], group: tuple[str, ...], verdicts: list[Verdict]) -> None:
    """The tables, what did not finish, and the verdicts."""
    console = Console(width=None if sys.stdout.isatty() else 170)
    for title, records in parts(runs, group).items():
        count = f"{len(records)} run{'s' * (len(records) > 1)}"
        console.print()
        if any(record.status == "finished" for record in records):
            console.print(rich_table(records, f"{title}: {count}" if title else count))
        for line in unfinished(records):
            console.print(line, highlight=False, markup=False)
    show_verdicts(console, verdicts)


def show_verdicts(console: Console, verdicts: list[Verdict]) -> None:
    for verdict in verdicts[:ON_SCREEN]:
        console.print(f"\n{verdict.title}", style="bold", highlight=False, markup=False)
        for sentence in verdict.sentences:
            console.print(f"  {sentence}", highlight=False, markup=False)
    if len(verdicts) > ON_SCREEN:
        console.print(f"\n{len(verdicts) - ON_SCREEN} more verdicts are in results.md and report.html.", highlight=False)
    if verdicts:
        console.print(f"\n{CAUTION}", style="dim", highlight=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
