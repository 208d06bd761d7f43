"""The runs of a sweep as pictures: accuracy against size and latency, latency against batch size and image size."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qexp.types import Record

MARKERS = "osD^vPX*<>"


def accuracy_plot(records: list[Record], file: Path) -> bool:
    """Write top-1 against size and latency of all runs that have them: a colour per model, a shape per method. False if none has."""
    axes_of = {"size_mb": "size on disk, MB", "latency_ms": "latency of one call, ms"}
    rows = [r for r in records if r.status == "finished" and "top1" in r.metrics and axes_of.keys() <= r.metrics.keys()]
    if not rows:
        return False
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(1, 2, sharey=True), axes_of.items(), strict=True):
        _scatter(axes, rows, metric)
        axes.set_xscale("log")
        axes.set_xlabel(title)
        axes.grid(True, which="both", alpha=0.2)
    left, right = figure.axes
    left.set_ylabel("top-1 accuracy, %")
    right.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.savefig(file, dpi=150)
    return True


def _scatter(axes: Axes, rows: list[Record], metric: str) -> None:
    models = list(dict.fromkeys(r.params["model"] for r in rows))
    labels = list(dict.fromkeys(r.params["label"] for r in rows))
    seen = set()
    for row in rows:
        model, label = row.params["model"], row.params["label"]
        name = f"{model} · {label}"
        axes.scatter(
            row.metrics[metric], 100 * row.metrics["top1"], s=60, color=f"C{models.index(model) % 10}",
            marker=MARKERS[labels.index(label) % len(MARKERS)], label=None if name in seen else name, alpha=0.85,
        )  # fmt: skip
        seen.add(name)


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
    told = [k for k in others if k in ("label", "engine") or len({r.params.get(k) for r in rows}) > 1]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, list[Record]] = {}
    for row in rows:
        lines.setdefault(" · ".join(f"{'' if k in ('label', 'engine') else k + ' '}{row.params[k]}" for k in told), []).append(row)
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
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure
