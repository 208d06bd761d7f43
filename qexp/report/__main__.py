"""Reports on the runs on disk: writes tables, pictures and one page, report.html.

    qexp report [KEY=VALUE ...]

Options:
    sweep: Name of a sweep, `latest` or `all` (default: latest).
    outputs: Folder with the outputs of sweeps (default: outputs).
    to: Folder to write to (default: OUTPUTS/reports/SWEEP).
    where: Conditions that the runs must meet, such as where="model=resnet34, bits<8 and top1>=0.9".
        They can be about parameters, options, machine, sweep, status, kind and metrics (default: none).
    group: Names whose values split the tables, joined by commas. The first one also colours the plot (default: none).
    x, y: Metrics of the plot's axes, such as x=size_mb y=top1 (default: the usual ones).
    format: Any of md,csv,tex,html,png,svg, joined by commas (default: all).
    points: Percentage points of top-1 below fp32 that the verdict accepts (default: 1).
"""

from __future__ import annotations

import sys
from pathlib import Path

from qexp.report.axes import check_axis
from qexp.report.runs import check_names, read_runs, where
from qexp.report.screen import show
from qexp.report.write import FORMATS, Style, write_report
from qexp.types import UserError, nearest

DEFAULTS = {
    "sweep": "latest", "outputs": "outputs", "to": "", "where": "", "group": "", "x": "", "y": "", "points": "1",
    "format": ",".join(FORMATS),
}  # fmt: skip


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
            check_axis(given[option], kept, option)
    style = Style(tuple(listed(given["format"])), points_of(given["points"]), given["x"], given["y"], group)
    name = kept[0].record.sweep if given["sweep"] == "latest" else given["sweep"]
    folder = Path(given["to"]) if given["to"] else outputs / "reports" / name
    written = write_report(kept, folder, "all sweeps" if name == "all" else f"sweep {name}", style, given["where"])
    show(kept, written.verdicts, group)
    print(f"\nWritten to {folder}: {', '.join(file.name for file in written.files)}")


def listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def points_of(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"points={text} is no number of percentage points; give 0 or more, such as points=0.5"
        ) from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
