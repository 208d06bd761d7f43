"""Draws what a search within limits tried: the drop in accuracy against the cost, over the time of the search."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from qexp.files import not_writable
from qexp.report.plot import MARKERS, logarithmic
from qexp.within_limits.answer import REACHED, Answer
from qexp.within_limits.limits import BOUNDED, DROP

FAR = 20  # points lost, from which on the axis is logarithmic, or what holds would lie on one line


def draw(answer: Answer, file: Path) -> bool:
    """Draw the trials of a search, each step with a marker of its own, and in colour the minute of the search.

    Args:
        answer: The answer.
        file: Picture to write.

    Returns:
        Whether anything could be drawn.

    Raises:
        UserError: The file cannot be written.
    """
    wanted = [*(n for n in answer.minimised if n != DROP), *(n for n in answer.bounds if n != DROP), *REACHED]
    cost = next((n for n in wanted if n != DROP and any({n, DROP} <= row.values.keys() for row in answer.rows)), None)
    rows = [row for row in answer.rows if {cost, DROP} <= row.values.keys()] if cost else []
    if not rows or cost is None:
        return False
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes, last = figure.subplots(), max(row.at for row in answer.rows) / 60
    for step, marker in zip(dict.fromkeys(row.step for row in rows), MARKERS, strict=False):
        members = [row for row in rows if row.step == step]
        dots = axes.scatter(
            [row.values[cost] for row in members], [row.values[DROP] for row in members],
            c=[row.at / 60 for row in members], vmin=0, vmax=last, cmap="viridis", marker=marker, s=45, label=step,
        )  # fmt: skip
    for row in rows:
        if row.name == answer.chosen:
            axes.scatter([row.values[cost]], [row.values[DROP]], s=220, facecolors="none", edgecolors="red")
            axes.annotate(row.name, (row.values[cost], row.values[DROP]), (8, 8), textcoords="offset points")
    if cost in answer.bounds:
        axes.axvline(answer.bounds[cost], color="grey", linestyle="--")
    if DROP in answer.bounds:
        axes.axhline(answer.bounds[DROP], color="grey", linestyle="--")
    logarithmic(axes)
    if max(row.values[DROP] for row in rows) > FAR:
        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlabel(BOUNDED[cost].axis_title)
    axes.set_ylabel("points of top-1 lost on validation images")
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(fontsize="small")
    figure.colorbar(dots, label="minute of the search")
    try:
        figure.savefig(file, dpi=150)
    except OSError as error:
        raise not_writable(file, error) from error
    return True
