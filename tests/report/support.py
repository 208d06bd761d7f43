"""Records for tests of reports, and their table cell by cell."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qexp.records import Measurement, Record
from qexp.report.table import table


def record(
    label: str,
    batch: int = 1,
    model: str = "vgg",
    data: str = "pets",
    status: str = "finished",
    reason: str = "",
    **metrics: Any,
) -> Record:
    params = {
        "model": model,
        "data": data,
        "label": label,
        "engine": "eager",
        "batch_size": batch,
        "method": label.split()[0],
    }
    return Record(
        kind="compress", key=label, sweep="monday", status=status, reason=reason, label=f"{model} · {label}",
        params=params, config={},
        measurements=tuple(Measurement(name, value, "x") for name, value in metrics.items()), environment={},
        command="", created="",
    )  # fmt: skip


FP32 = record("fp32", top1=0.90, top1_drop=0.0, size_mb=10.0, latency_ms=4.0)
INT8 = record("static int8", top1=0.8912, top1_drop=0.0088, size_mb=2.5, size_ratio=4.0, latency_ms=1.0, speedup=4.0)
HALF = record("half", top1=0.90, top1_drop=0.0, size_mb=5.0, size_ratio=2.0)


def made(label: str, seed: int = 0, batch: int = 1, metrics: dict[str, float] | None = None, **options: Any) -> Record:
    """A record of the method that the label begins with."""
    method = {
        "_target_": f"qexp.{label.split()[0]}",
        "_recursive_": False,
        "bits": 8,
        "trainer": {"devices": batch},
        **options,
    }
    return replace(
        record(label, batch=batch, **(metrics or {"top1": 0.5})),
        config={"seed": seed, "method": method, "batch_size": batch},
    )


def table_of(records: list[Record]) -> tuple[list[str], list[list[str]], list[list[bool]]]:
    """Titles, cells, and which cells are marked."""
    shown = table(records)
    marks = [[(i, j) in shown.marks for j in range(len(shown.titles))] for i in range(len(shown.rows))]
    return [*shown.titles], [[*row] for row in shown.rows], marks
