"""What a search is for: metrics of its trials' records, of which the test images' are none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig

from qexp.metrics import LOWER, METRICS, VALIDATION, Metric, known_metric, metrics_of
from qexp.types import Record, UserError, nearest

DIRECTIONS = ("minimize", "maximize")


def check_objectives(objectives: Mapping[str, str], config: DictConfig) -> None:
    """Errors: UserError where there are none, one would choose by the test images, or cannot be measured as the command stands."""
    if not objectives:
        raise UserError(
            "A search needs objectives: +hydra.sweeper.objectives.val_top1=maximize, or size_mb, latency_ms, ...=minimize"
        )
    for name, direction in objectives.items():
        check_objective(known_metric(name) or declared(config.measure).get(name, Metric(name, "")), direction)
    part = (config.measure.get("accuracy") or {}).get("part")
    on_validation = next((name for name in objectives if name in METRICS and name.startswith(VALIDATION)), None)
    if on_validation and part != "validation":
        raise UserError(
            f"{on_validation} needs measure.accuracy.part=validation, it is {part}: a trial leaves the test images alone."
        )


def check_objective(metric: Metric, direction: str) -> None:
    """Errors: UserError where it is taken on the test images, or the direction is none, or that of the worst."""
    if metric.on_test:
        instead = f"use {metric.validation.name}" if metric.has_validation else "use val_top1, size_mb or latency_ms"
        raise UserError(
            f"{metric.name} is taken on the test images, which choose nothing: {instead} (measure.accuracy.part=validation)."
        )
    if direction not in DIRECTIONS:
        raise UserError(
            f"hydra.sweeper.objectives.{metric.name}={direction} is unknown. {nearest(str(direction), DIRECTIONS)}"
        )
    best = DIRECTIONS[metric.better != LOWER] if metric.better else direction
    if direction != best:
        raise UserError(f"hydra.sweeper.objectives.{metric.name}={direction} would look for the worst: give {best}.")


def declared(measures: DictConfig) -> dict[str, Metric]:
    """The metrics that measures of the config declare in their own files, on the validation images too, by name."""
    classes: list[Any] = [get_class(node._target_) for node in measures.values() if isinstance(node, DictConfig)]
    return {each.name: each for made in classes for metric in made.metrics for each in metric.with_validation}


def values_of(record: Record, objectives: Mapping[str, str]) -> tuple[list[float], str]:
    """The record's values in the order of the objectives, and an empty reason; or none, and the reason.

    Errors: UserError where no run would have such a metric, and where a record says of its own metric that it is no objective.
    """
    if record.status != "finished":
        return [], record.reason
    known = metrics_of([record])
    for name, direction in objectives.items():
        if name in record.notes and name not in record.metrics:
            return [], f"it has no {name}: {record.notes[name]}"
        if name not in record.metrics:
            raise UserError(f"No run has the metric {name} that is to be optimised. {nearest(name, record.metrics)}")
        check_objective(known[name], direction)
        if not math.isfinite(record.metrics[name]):
            return [], f"its {name} is {record.metrics[name]}"
    return [record.metrics[name] for name in objectives], ""
