"""Draws what rounding did to the layers of a run: all layers side by side, histograms of single ones, sensitivities."""

from __future__ import annotations

import csv
import math
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Row = dict[str, str]
SQNR = {"weight": "weights", "input": "input", "output": "result, against fp32"}
BITS = {"float32": 32, "float16": 16, "bfloat16": 16}


def draw_layers(artifact: Path, folder: Path, chosen: str | None) -> list[Path]:
    """Write layers.png, sensitivity.png, and layer-NAME.png for each chosen layer.

    A picture is left out if the artifact's folder lacks the data for it.

    Args:
        artifact: Folder of the artifact.
        folder: Folder to write to.
        chosen: Name of the layers to draw histograms of, with `*` for any characters. None for no layer.

    Returns:
        The files written.
    """
    pictures: dict[str, Figure] = {}
    rows = _read(artifact / "layers.csv")
    if any(row["weight_sqnr_db"] for row in rows):
        pictures["layers.png"] = layers_figure(rows)
    if (artifact / "sensitivity.csv").exists():
        pictures["sensitivity.png"] = sensitivity_figure(_read(artifact / "sensitivity.csv"))
    if chosen and (artifact / "histograms.npz").exists():
        with np.load(artifact / "histograms.npz") as histograms:
            for row in rows:
                if fnmatchcase(row["layer"], chosen):
                    pictures[f"layer-{row['layer']}.png"] = layer_figure(row, dict(histograms))
    for name, figure in pictures.items():
        figure.savefig(folder / name, dpi=150)
    return [folder / name for name in pictures]


def _read(file: Path) -> list[Row]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def _number(text: str) -> float:
    """Read a ratio. One that is missing, or infinite because nothing was lost, becomes NaN: a gap in a line."""
    value = float(text) if text else math.nan
    return value if math.isfinite(value) else math.nan


def bits_of(number_format: str) -> int:
    """The bit width of a number format, such as `uint4` or `float32`."""
    return BITS.get(number_format) or int(number_format.removeprefix("u").removeprefix("int"))


def layers_figure(rows: list[Row]) -> Figure:
    """Draw the signal-to-noise ratios of each layer's weights, input and result, above the layer's bit widths."""
    places = np.arange(len(rows))
    figure = Figure(figsize=(max(6.5, 0.32 * len(rows) + 2.5), 5.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for (column, title), marker in zip(SQNR.items(), "os^", strict=True):
        values = [_number(row[f"{column}_sqnr_db"]) for row in rows]
        if not all(map(math.isnan, values)):
            above.plot(places, values, marker=marker, markersize=5, label=title)
    above.set_ylabel("signal to noise, dB")
    above.set_ylim(bottom=0)
    for offset, column, title in ((-0.2, "weight", "weights"), (0.2, "activation", "input")):
        below.bar(places + offset, [bits_of(row[column]) for row in rows], width=0.4, label=title)
    below.set_ylabel("bits")
    below.yaxis.set_major_locator(MaxNLocator(integer=True))
    below.set_xticks(places, [row["layer"] for row in rows], rotation=90, fontsize=8)
    _finish(above, below)
    return figure


def sensitivity_figure(rows: list[Row]) -> Figure:
    """Draw what rounding one layer alone to each bit width does to the loss and to the logits."""
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    figure = Figure(figsize=(max(6.5, 0.32 * len(layers) + 2.5), 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    widths = list(dict.fromkeys((row["weight_bits"], row["activation_bits"]) for row in rows))
    for width in sorted(widths, key=lambda pair: sum(map(int, pair))):
        line = [row for row in rows if (row["weight_bits"], row["activation_bits"]) == width]
        places = [layers.index(row["layer"]) for row in line]
        name = f"{width[0]} bits" if width[0] == width[1] else f"w{width[0]}a{width[1]}"
        for axes, column in ((above, "loss_change_nats"), (below, "sqnr_db")):
            axes.plot(places, [_number(row[column]) for row in line], marker="o", markersize=4, label=name)
    above.set_yscale("log")
    above.set_ylabel("change of the loss, nats")
    below.set_ylabel("logits: signal to noise, dB")
    below.set_xticks(range(len(layers)), layers, rotation=90, fontsize=8)
    _finish(above, below)
    return figure


def layer_figure(row: Row, histograms: dict[str, np.ndarray]) -> Figure:
    """Draw histograms of a layer's weights and input before and after rounding, and the limits of clipping."""
    tensors = [tensor for tensor in ("weight", "input") if f"{row['layer']}/{tensor}/edges" in histograms]
    figure = Figure(figsize=(6 * max(1, len(tensors)), 4), layout="constrained")
    figure.suptitle(f"{row['layer']} ({row['kind']})")
    for tensor, axes in zip(tensors, figure.subplots(1, len(tensors), squeeze=False)[0], strict=True):
        edges, before, after = (histograms[f"{row['layer']}/{tensor}/{part}"] for part in ("edges", "before", "after"))
        _histogram(axes, edges, before, after)
        for limit in ("clip_low", "clip_high"):
            label = "clipped beyond" if limit == "clip_low" else None
            axes.axvline(float(row[f"{tensor}_{limit}"]), color="C3", linestyle="--", linewidth=1, label=label)
        axes.set_title(_title(row, tensor), fontsize=9)
        axes.set_xlabel("value")
        axes.legend(frameon=False, fontsize=8, loc="upper right")
    figure.axes[0].set_ylabel("share of the values in each of 200 bins")
    return figure


def _histogram(axes: Axes, edges: np.ndarray, before: np.ndarray, after: np.ndarray) -> None:
    """Draw a histogram on a logarithmic scale, because a single bin of zeros would flatten all others."""
    axes.stairs(before / before.sum(), edges, fill=True, color="C0", alpha=0.35, label="before")
    filled = after > 0
    axes.vlines(
        ((edges[:-1] + edges[1:]) / 2)[filled],
        1e-7,
        (after / after.sum())[filled],
        color="C1",
        linewidth=1,
        label="after",
    )
    axes.set_yscale("log")
    axes.set_ylim(0.5 / before.sum(), 1.5)


def _title(row: Row, tensor: str) -> str:
    low, high = (float(row[f"{tensor}_scale_{end}"]) for end in ("min", "max"))
    zero_low, zero_high = (float(row[f"{tensor}_zero_point_{end}"]) for end in ("min", "max"))
    scale = f"scale {low:.3g}" if low == high else f"scales {low:.3g} to {high:.3g}"
    zero = f"zero point {zero_low:.0f}" if zero_low == zero_high else f"zero points {zero_low:.0f} to {zero_high:.0f}"
    number_format = row["weight" if tensor == "weight" else "activation"]
    quality = f"{float(row[f'{tensor}_sqnr_db']):.1f} dB, {100 * float(row[f'{tensor}_clipped']):.2g} % clipped"
    return f"{'weights' if tensor == 'weight' else tensor}: {number_format}, {scale}, {zero}\n{quality}"


def _finish(*panels: Axes) -> None:
    for axes in panels:
        axes.grid(True, alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
