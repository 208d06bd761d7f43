"""What a search is for: metrics of its trials' records, of which the test images' are none."""

from __future__ import annotations

import math
from collections.abc import Mapping

from omegaconf import DictConfig

from qexp.report.table import COLUMNS
from qexp.types import Record, UserError, nearest

DIRECTIONS = ("minimize", "maximize")
BETTER = {column.metric: "maximize" if column.best is max else "minimize" for column in COLUMNS if column.best}
ACCURACY = ("top1", "top1_low", "top1_high", "top5", "loss", "top1_drop", "agreement", "mcnemar_p")
ON_VALIDATION = {name: f"val_{name}" for name in ACCURACY}
ON_TEST = (*ON_VALIDATION, "test_seconds", "parity_agreement", "parity_max_error")


def check_objectives(objectives: Mapping[str, str], config: DictConfig) -> None:
    """Errors: UserError where there are none, one would choose by the test images, or cannot be measured as the command stands."""
    if not objectives:
        raise UserError(
            "A search needs objectives: +hydra.sweeper.objectives.val_top1=maximize, or size_mb, latency_ms, ...=minimize"
        )
    for name, direction in objectives.items():
        if name in ON_TEST:
            instead = f"use {ON_VALIDATION[name]}" if name in ON_VALIDATION else "use val_top1, size_mb or latency_ms"
            raise UserError(
                f"{name} is taken on the test images, which choose nothing: {instead} (measure.accuracy.part=validation)."
            )
        if direction not in DIRECTIONS:
            raise UserError(
                f"hydra.sweeper.objectives.{name}={direction} is unknown. {nearest(str(direction), DIRECTIONS)}"
            )
        if direction != BETTER.get(name, direction):
            raise UserError(
                f"hydra.sweeper.objectives.{name}={direction} would look for the worst: give {BETTER[name]}."
            )
    part = (config.measure.get("accuracy") or {}).get("part")
    on_validation = next((name for name in objectives if name in ON_VALIDATION.values()), None)
    if on_validation and part != "validation":
        raise UserError(
            f"{on_validation} needs measure.accuracy.part=validation, it is {part}: a trial leaves the test images alone."
        )


def values_of(record: Record, objectives: Mapping[str, str]) -> tuple[list[float], str]:
    """The record's values in the order of the objectives, and an empty reason; or none, and the reason.

    Errors: UserError where no run would have such a metric.
    """
    if record.status != "finished":
        return [], record.reason
    for name in objectives:
        if name in record.notes and name not in record.metrics:
            return [], f"it has no {name}: {record.notes[name]}"
        if name not in record.metrics:
            raise UserError(f"No run has the metric {name} that is to be optimised. {nearest(name, record.metrics)}")
        if not math.isfinite(record.metrics[name]):
            return [], f"its {name} is {record.metrics[name]}"
    return [record.metrics[name] for name in objectives], ""
