"""The objectives of a search: metrics of its trials' records, but none that is taken on the test images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig

from qexp.metrics import LOWER, METRICS, VALIDATION, Metric, known_metric, metrics_of
from qexp.records import Record
from qexp.types import UserError, nearest

DIRECTIONS = ("minimize", "maximize")


def check_objectives(objectives: Mapping[str, str], config: DictConfig) -> None:
    """Check the objectives of a search before it starts.

    Args:
        objectives: Directions (`minimize` or `maximize`) by the names of metrics.
        config: Config of the command.

    Raises:
        UserError: There are no objectives, one of them is not allowed (see `check_objective`), or one of them is not
            measured with this config.
    """
    if not objectives:
        raise UserError(
            "A search needs objectives: "
            "+hydra.sweeper.objectives.val_top1=maximize, or size_mb, latency_ms, ...=minimize"
        )
    for name, direction in objectives.items():
        check_objective(known_metric(name) or declared(config.measure).get(name, Metric(name, "")), direction)
    part = (config.measure.get("accuracy") or {}).get("part")
    on_validation = next((name for name in objectives if name in METRICS and name.startswith(VALIDATION)), None)
    if on_validation and part != "validation":
        raise UserError(
            f"{on_validation} needs measure.accuracy.part=validation, it is {part}: "
            "a trial leaves the test images alone."
        )


def check_objective(metric: Metric, direction: str) -> None:
    """Check a single objective.

    Raises:
        UserError: The metric is taken on the test images, or the direction is unknown or would look for the worst.
    """
    if metric.on_test:
        instead = f"use {metric.validation.name}" if metric.has_validation else "use val_top1, size_mb or latency_ms"
        raise UserError(
            f"{metric.name} is taken on the test images, which choose nothing: "
            f"{instead} (measure.accuracy.part=validation)."
        )
    if direction not in DIRECTIONS:
        raise UserError(
            f"hydra.sweeper.objectives.{metric.name}={direction} is unknown. {nearest(str(direction), DIRECTIONS)}"
        )
    best = DIRECTIONS[metric.better != LOWER] if metric.better else direction
    if direction != best:
        raise UserError(f"hydra.sweeper.objectives.{metric.name}={direction} would look for the worst: give {best}.")


def declared(measures: DictConfig) -> dict[str, Metric]:
    """The metrics that the config's measures declare in their own files, by name, also those on validation images."""
    classes: list[Any] = [get_class(node._target_) for node in measures.values() if isinstance(node, DictConfig)]
    return {each.name: each for made in classes for metric in made.metrics for each in metric.with_validation}


def values_of(record: Record, objectives: Mapping[str, str]) -> tuple[list[float], str]:
    """Read the values of the objectives from a trial's record.

    Returns:
        The values in the order of the objectives and an empty reason, or no values and the reason why there are none.

    Raises:
        UserError: No run would have such a metric, or the record describes its metric as one that is no objective.
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
