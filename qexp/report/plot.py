"""The runs of a sweep as points: accuracy against size and against latency."""

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
