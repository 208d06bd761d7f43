"""The runs of a sweep as pictures: accuracy against size, latency and bits, latency against batch size and image size."""

from __future__ import annotations

import re
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qexp.report.varied import told, varied
from qexp.types import Record

MARKERS = "osD^vPX*<>"


def accuracy_plot(records: list[Record], file: Path) -> bool:
    """Write top-1 against size and latency of all runs that have them. False if none has."""
    axes_of = {"size_mb": "size on disk, MB", "latency_ms": "latency of one call, ms"}
    top1, name = _accuracy(records)
    rows = [r for r in records if r.status == "finished" and {top1, *axes_of} <= r.metrics.keys()]
    if not rows:
        return False
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(1, 2, sharey=True), axes_of.items(), strict=True):
        _scatter(axes, rows, metric, top1)
        axes.set_xscale("log")
        axes.set_xlabel(title)
        axes.grid(True, which="both", alpha=0.2)
    left, right = figure.axes
    left.set_ylabel(name)
    _legend(right, figure)
    figure.savefig(file, dpi=150)
    return True


def _accuracy(records: list[Record]) -> tuple[str, str]:
    """The metric that is shown, and its name: on the validation images where no run has seen the test images."""
    validated = not any("top1" in r.metrics for r in records) and any("val_top1" in r.metrics for r in records)
    return ("val_top1", "validation top-1 accuracy, %") if validated else ("top1", "top-1 accuracy, %")


def _legend(axes: Axes, figure: Figure) -> None:
    """To the right of the axes, all of it: a long one makes the figure higher."""
    names = axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False).get_texts()
    figure.set_figheight(max(figure.get_figheight(), 0.3 + 0.22 * len(names)))


def _scatter(axes: Axes, rows: list[Record], metric: str, top1: str) -> None:
    """A colour per model, a shape per method and options that differ; of one model, a colour per method, a shape per options."""
    options = varied(rows)
    several = len({row.params["model"] for row in rows}) > 1
    names: dict[str, tuple[str, str]] = {}
    for row in rows:
        model, label, apart = row.params["model"], row.params["label"], told(row, options)
        names[f"{model} · {label}{apart}"] = (model, label + apart) if several else (label, apart if options else label)
    hues, shapes = (list(dict.fromkeys(style[i] for style in names.values())) for i in (0, 1))
    seen = set()
    for row in rows:
        name = f"{row.params['model']} · {row.params['label']}{told(row, options)}"
        hue, shape = names[name]
        hollow = shapes.index(shape) // len(MARKERS) % 2  # once all shapes are taken
        colour = f"C{hues.index(hue) % 10}"
        axes.scatter(
            row.metrics[metric], 100 * row.metrics[top1], s=60, facecolors="none" if hollow else colour, edgecolors=colour,
            marker=MARKERS[shapes.index(shape) % len(MARKERS)], label=None if name in seen else name, alpha=0.85,
        )  # fmt: skip
        seen.add(name)


def bits_plots(records: list[Record], folder: Path) -> list[Path]:
    """For each model (and data, and image size, as far as the runs go through several): top-1 against bits, if there are several.
    The files written."""
    top1, _ = _accuracy(records)
    rows = [r for r in records if r.status == "finished" and top1 in r.metrics]
    groups: dict[str, list[Record]] = {}
    several = [key for key in ("data", "image_size") if len({r.params.get(key) for r in rows}) > 1]
    for row in rows:
        groups.setdefault(" · ".join(str(row.params.get(key)) for key in ("model", *several)), []).append(row)
    written = []
    for name, members in groups.items():
        if len({_widths(row) for row in members} - {None}) > 1:
            file = folder / f"accuracy-by-bits-{name.replace(' · ', '-').replace('/', '_')}.png"
            _accuracy_by_bits(members, name).savefig(file, dpi=150)
            written.append(file)
    return written


def _accuracy_by_bits(rows: list[Record], title: str) -> Figure:
    """One line per method and options that differ, and where fp32 lies."""
    options, (metric, accuracy) = varied(rows), _accuracy(rows)
    lines: dict[str, list[tuple[tuple[int, int], float]]] = {}
    for row in rows:
        if widths := _widths(row):
            lines.setdefault(f"{row.params['method']}{told(row, options)}", []).append((widths, 100 * row.metrics[metric]))
    ticks = sorted({widths for line in lines.values() for widths, _ in line}, reverse=True)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for index, (name, line) in enumerate(lines.items()):
        line.sort(reverse=True)
        aside = min(0.05, 0.3 / len(lines)) * (index - (len(lines) - 1) / 2)  # equal points stay visible
        places = [ticks.index(widths) + aside for widths, _ in line]
        axes.plot(places, [top1 for _, top1 in line], label=name, marker=MARKERS[index % len(MARKERS)], markersize=7, alpha=0.85)
    for top1 in _fp32(rows, metric):
        axes.axhline(top1, color="black", linestyle="--", linewidth=1, label=f"fp32, {top1:.2f} %", zorder=0)
    axes.set(xlabel="bits of weights and activations", ylabel=accuracy, title=title)
    axes.set_xticks(range(len(ticks)), [str(w) if w == a else f"w{w}a{a}" for w, a in ticks])
    axes.set_xlim(-0.4, len(ticks) - 0.6)
    axes.grid(True, alpha=0.3)
    _legend(axes, figure)
    return figure


def _widths(record: Record) -> tuple[int, int] | None:
    """Bits of weights and activations; None of fp32, and where layers have bits of their own."""
    found = re.fullmatch(r"w(\d+)a(\d+)|(\d+)", str(record.params.get("bits")))
    if found is None or record.params["method"] == "none":
        return None
    return int(found[1] or found[3]), int(found[2] or found[3])


def _fp32(rows: list[Record], metric: str) -> list[float]:
    """Top-1 of the uncompressed networks, in percent: of their own runs, or else what the others were compared with."""
    own = [r.metrics[metric] for r in rows if r.params["method"] == "none"]
    compared = [r.metrics[metric] + r.metrics[f"{metric}_drop"] for r in rows if f"{metric}_drop" in r.metrics]
    return list(dict.fromkeys(round(100 * top1, 2) for top1 in own or compared))


def latency_plots(records: list[Record], folder: Path) -> list[Path]:
    """For each model: mean latency and its standard deviation against batch size and against image size, as far as the runs go
    through several of them. The files written."""
    written = []
    for key, title in (("batch_size", "images per call"), ("image_size", "side of the image, pixels")):
        for model in dict.fromkeys(r.params["model"] for r in records):
            rows = [r for r in records if r.params["model"] == model and "latency_mean_ms" in r.metrics and key in r.params]
            if len({row.params[key] for row in rows}) > 1:
                file = folder / f"latency-by-{key}-{model.replace('/', '_')}.png"
                _curves(rows, key, title).savefig(file, dpi=150)
                written.append(file)
    return written


def _curves(rows: list[Record], key: str, title: str) -> Figure:
    """One line per method, engine and whatever else the runs of one model differ in."""
    others = [k for k in ("label", "engine", "batch_size", "image_size", "threads", "data") if k != key]
    shown = [k for k in others if k in ("label", "engine") or len({r.params.get(k) for r in rows}) > 1]
    options = varied(rows)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, list[Record]] = {}
    for row in rows:
        name = " · ".join(f"{'' if k in ('label', 'engine') else k + ' '}{row.params[k]}" for k in shown)
        lines.setdefault(name + told(row, options), []).append(row)
    for index, (name, line) in enumerate(lines.items()):
        line.sort(key=lambda r: r.params[key])
        mean, std = ([r.metrics[metric] for r in line] for metric in ("latency_mean_ms", "latency_std_ms"))
        axes.errorbar([r.params[key] for r in line], mean, std, label=name, marker=MARKERS[index % len(MARKERS)], capsize=3)
    axes.set(xscale="log", yscale="log", xlabel=title, ylabel="latency of one call, ms (mean ± standard deviation)")
    ticks = sorted({row.params[key] for row in rows})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_title(rows[0].params["model"])
    axes.grid(True, alpha=0.3)
    _legend(axes, figure)
    return figure
