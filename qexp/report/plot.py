"""Draws the runs of a sweep: accuracy against size, latency and bits, and latency against batch size and image size."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from qexp.metrics import METRICS, Metric, metrics_of
from qexp.records import Record
from qexp.report.axes import default_benefit, same
from qexp.report.options import differing_options, option_suffix
from qexp.report.pareto import pareto_front
from qexp.report.runs import Run, grouped

MARKERS = "osD^vPX*<>"


def accuracy_plot(
    records: list[Record],
    file: Path,
    costs: Sequence[str] = ("size_mb", "latency_ms"),
    benefit: str = "",
    formats: Sequence[str] = ("png",),
) -> list[Path]:
    """Plot a benefit against each of the costs, with 95 % intervals and Pareto fronts.

    A panel shows all finished runs that have both of its metrics.

    Args:
        records: Records of the runs.
        file: File to write. Its ending is replaced by each of the formats.
        costs: Metrics of the horizontal axes, each with a panel of its own.
        benefit: Metric of the vertical axis, or empty for top-1.
        formats: Endings of the files, such as `png`.

    Returns:
        The files written, none if no run has both metrics of a panel.
    """
    finished = [Run(r, Path()) for r in records if r.status == "finished"]
    known = metrics_of(run.record for run in finished)
    up = known.get(benefit) if benefit else default_benefit(finished)
    panels = {
        known[cost]: rows
        for cost in costs
        if up and (rows := [run for run in finished if {cost, up.name} <= run.record.metrics.keys()])
    }
    if not up or not panels:
        return []
    figure = Figure(figsize=(4.5 * len(panels) + 0.5, 4.5), layout="constrained")
    for axes, (cost, rows) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True
    ):
        _intervals(axes, rows, cost, up)
        _fronts(axes, rows, cost, up)
        _scatter(axes, [run.record for run in rows], cost, up)
        logarithmic(axes)
        axes.set_xlabel(cost.axis_title)
        axes.grid(True, which="both", alpha=0.2)
    figure.axes[0].set_ylabel(up.axis_title)
    _legend(figure.axes[-1], figure)
    return _saved(figure, file, formats)


def _saved(figure: Figure, file: Path, formats: Sequence[str]) -> list[Path]:
    files = [file.with_name(f"{file.stem}.{ending}") for ending in formats]
    for each in files:
        figure.savefig(each, dpi=150)
        figure.set_layout_engine("none")  # the layout of the first file fits the others
    return files


def logarithmic(axes: Axes) -> None:
    """Make the horizontal axis logarithmic, with plain numbers.

    Ticks are evenly spaced on an axis that covers less than a factor of 5, at 1, 2 and 5 of each decade on one that
    covers less than a factor of 200, and otherwise at powers of ten.
    """
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(
        MaxNLocator(4) if high / low < 5 else LogLocator(subs=(1, 2, 5) if high / low < 200 else (1,))
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _intervals(axes: Axes, rows: list[Run], cost: Metric, benefit: Metric) -> None:
    if not any(axis.low in run.record.metrics for run in rows for axis in (cost, benefit)):
        return
    bars = []
    for axis in (cost, benefit):
        metrics = [run.record.metrics for run in rows]
        below = [axis.factor * (m[axis.name] - m.get(axis.low, m[axis.name])) for m in metrics]
        above = [axis.factor * (m.get(axis.high, m[axis.name]) - m[axis.name]) for m in metrics]
        bars.append(([axis.factor * m[axis.name] for m in metrics], [below, above]))
    (x, x_bars), (y, y_bars) = bars
    axes.errorbar(x, y, xerr=x_bars, yerr=y_bars, fmt="none", ecolor="0.6", elinewidth=0.8, zorder=0)


def _fronts(axes: Axes, rows: list[Run], cost: Metric, benefit: Metric) -> None:
    """Draw the Pareto front of each group of runs that may be compared.

    It is a line of steps, because the benefit stays the same until the cost reaches the next run of the front.
    """
    for members in grouped(rows, dict.fromkeys((*same(cost), *same(benefit)))).values():
        x, y = ([axis.factor * run.record.metrics[axis.name] for run in members] for axis in (cost, benefit))
        front = pareto_front(x, y)
        if len({x[i] for i in front}) > 1:
            axes.step(
                [x[i] for i in front],
                [y[i] for i in front],
                where="post",
                color="0.5",
                linewidth=1,
                linestyle=":",
                zorder=0,
            )


def _legend(axes: Axes, figure: Figure) -> None:
    """Place one legend for all panels to the right of the axes.

    The figure grows so that all of the legend is visible: in height with its length, in width with its longest name.
    """
    handles = {
        label: handle for each in figure.axes for handle, label in zip(*each.get_legend_handles_labels(), strict=True)
    }
    axes.legend(handles.values(), handles.keys(), loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.set_figheight(max(figure.get_figheight(), 0.3 + 0.22 * len(handles)))
    figure.set_figwidth(figure.get_figwidth() + 0.07 * max(map(len, handles), default=0))


def _scatter(axes: Axes, rows: list[Record], cost: Metric, benefit: Metric) -> None:
    """Draw the points.

    If there are several models, colours show the model, and shapes show the method with its differing options. If
    there is only one, colours show the method, and shapes show the options.
    """
    options = differing_options(rows)
    several = len({row.params["model"] for row in rows}) > 1
    styles: dict[str, tuple[str, str]] = {}
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        model, label, apart = row.params["model"], row.params["label"], option_suffix(row, options)
        name = f"{model} · {label}{apart}"
        styles[name] = (model, label + apart) if several else (label, apart if options else label)
        points.setdefault(name, []).append(
            (cost.factor * row.metrics[cost.name], benefit.factor * row.metrics[benefit.name])
        )
    hues, shapes = (list(dict.fromkeys(style[i] for style in styles.values())) for i in (0, 1))
    for name, (hue, shape) in styles.items():
        hollow = shapes.index(shape) // len(MARKERS) % 2  # after all shapes are used once
        colour = f"C{hues.index(hue) % 10}"
        x, y = zip(*points[name], strict=True)
        axes.scatter(
            x, y, s=60, facecolors="none" if hollow else colour, edgecolors=colour,
            marker=MARKERS[shapes.index(shape) % len(MARKERS)], label=name, alpha=0.85,
        )  # fmt: skip


def bits_plots(records: list[Record], folder: Path, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Plot top-1 against bits for each model with several bit widths.

    If the runs have several datasets or image sizes, each of those has a plot of its own.

    Returns:
        The files written.
    """
    top1 = _top1(records)
    rows = [r for r in records if r.status == "finished" and top1.name in r.metrics]
    groups: dict[str, list[Record]] = {}
    several = [key for key in ("data", "image_size") if len({r.params.get(key) for r in rows}) > 1]
    for row in rows:
        groups.setdefault(" · ".join(str(row.params.get(key)) for key in ("model", *several)), []).append(row)
    written = []
    for name, members in groups.items():
        if len({_widths(row) for row in members} - {None}) > 1:
            file = folder / f"accuracy-by-bits-{name.replace(' · ', '-').replace('/', '_')}.png"
            written += _saved(_accuracy_by_bits(members, name), file, formats)
    return written


def _top1(records: list[Record]) -> Metric:
    return default_benefit([Run(record, Path()) for record in records]) or METRICS["top1"]


def _accuracy_by_bits(rows: list[Record], title: str) -> Figure:
    """Draw a line for each method with its differing options, and one for fp32."""
    options, accuracy = differing_options(rows), _top1(rows)
    lines: dict[str, list[tuple[tuple[int, int], float]]] = {}
    for row in rows:
        if widths := _widths(row):
            lines.setdefault(f"{row.params['method']}{option_suffix(row, options)}", []).append(
                (widths, accuracy.factor * row.metrics[accuracy.name])
            )
    ticks = sorted({widths for line in lines.values() for widths, _ in line}, reverse=True)
    figure = Figure(figsize=(6.2, 4.5), layout="constrained")
    axes = figure.subplots()
    for index, (name, line) in enumerate(lines.items()):
        line.sort(reverse=True)
        aside = min(0.05, 0.3 / len(lines)) * (index - (len(lines) - 1) / 2)  # keeps equal points visible
        places = [ticks.index(widths) + aside for widths, _ in line]
        axes.plot(
            places,
            [top1 for _, top1 in line],
            label=name,
            marker=MARKERS[index % len(MARKERS)],
            markersize=7,
            alpha=0.85,
        )
    for top1 in _fp32(rows, accuracy.name):
        axes.axhline(top1, color="black", linestyle="--", linewidth=1, label=f"fp32, {top1:.2f} %", zorder=0)
    axes.set(xlabel="bits of weights and activations", ylabel=accuracy.axis_title, title=title)
    axes.set_xticks(range(len(ticks)), [str(w) if w == a else f"w{w}a{a}" for w, a in ticks])
    axes.set_xlim(-0.4, len(ticks) - 0.6)
    axes.grid(True, alpha=0.3)
    _legend(axes, figure)
    return figure


def _widths(record: Record) -> tuple[int, int] | None:
    """The bits of weights and activations. None for fp32, and if layers have bits of their own."""
    found = re.fullmatch(r"w(\d+)a(\d+)|(\d+)", str(record.params.get("bits")))
    if found is None or record.params["method"] == "none":
        return None
    return int(found[1] or found[3]), int(found[2] or found[3])


def _fp32(rows: list[Record], metric: str) -> list[float]:
    """Top-1 of the uncompressed networks in percent, from their own runs, or else from what the others lost."""
    own = [r.metrics[metric] for r in rows if r.params["method"] == "none"]
    compared = [r.metrics[metric] + r.metrics[f"{metric}_drop"] for r in rows if f"{metric}_drop" in r.metrics]
    return list(dict.fromkeys(round(100 * top1, 2) for top1 in own or compared))


def latency_plots(records: list[Record], folder: Path, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Plot the mean and the standard deviation of latency against batch size and against image size.

    Each model with several batch sizes or image sizes has a plot.

    Returns:
        The files written.
    """
    written = []
    for key, title in (("batch_size", "images per call"), ("image_size", "side of the image, pixels")):
        for model in dict.fromkeys(r.params["model"] for r in records):
            rows = [
                r for r in records if r.params["model"] == model and "latency_mean_ms" in r.metrics and key in r.params
            ]
            if len({row.params[key] for row in rows}) > 1:
                file = folder / f"latency-by-{key}-{model.replace('/', '_')}.png"
                written += _saved(_curves(rows, key, title), file, formats)
    return written


def _curves(rows: list[Record], key: str, title: str) -> Figure:
    """Draw a line for each method, engine and whatever else differs between the runs of one model."""
    others = [k for k in ("label", "engine", "batch_size", "image_size", "threads", "data") if k != key]
    shown = [k for k in others if k in ("label", "engine") or len({r.params.get(k) for r in rows}) > 1]
    options = differing_options(rows)
    figure = Figure(figsize=(6.2, 4.5), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, list[Record]] = {}
    for row in rows:
        name = " · ".join(f"{'' if k in ('label', 'engine') else k + ' '}{row.params[k]}" for k in shown)
        lines.setdefault(name + option_suffix(row, options), []).append(row)
    for index, (name, line) in enumerate(lines.items()):
        line.sort(key=lambda r: r.params[key])
        mean, std = ([r.metrics[metric] for r in line] for metric in ("latency_mean_ms", "latency_std_ms"))
        axes.errorbar(
            [r.params[key] for r in line], mean, std, label=name, marker=MARKERS[index % len(MARKERS)], capsize=3
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel=title,
        ylabel=f"{METRICS['latency_ms'].axis_title} (mean ± standard deviation)",
    )
    ticks = sorted({row.params[key] for row in rows})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_title(rows[0].params["model"])
    axes.grid(True, alpha=0.3)
    _legend(axes, figure)
    return figure
