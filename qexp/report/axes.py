"""What plots and verdicts compare runs by: the metrics, how they are called and drawn, and what bounds them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qexp.report.runs import SAME_CALL, SAME_IMAGES, Run, check_names


@dataclass(frozen=True)
class Axis:
    """metric: its name in a record; title: with its unit; factor: of the value as it is shown; low, high: metrics that bound it; timed:
    whether only calls of the same shape on the same machine are compared; more_is_better."""

    metric: str
    title: str
    factor: float = 1
    low: str = ""
    high: str = ""
    timed: bool = False
    more_is_better: bool = False

    @property
    def same(self) -> tuple[str, ...]:
        """Names of which two runs must have the same values to be compared."""
        return SAME_IMAGES + SAME_CALL * self.timed


COSTS = (
    Axis("latency_ms", "latency of one call, ms", 1, "latency_low_ms", "latency_high_ms", timed=True),
    Axis("latency_ms_per_image", "latency per image, ms", timed=True),
    Axis("size_mb", "size on disk, MB"),
    Axis("packed_size_mb", "size at exactly the bits of every tensor, MB"),
    Axis("zstd_size_mb", "size compressed by zstd, MB"),
    Axis("memory_mb", "memory, MB", timed=True),
    Axis("energy_mj_per_image", "energy per image, mJ", timed=True),
    Axis("macs_m", "multiply-accumulate operations, millions"),
    Axis("load_ms", "time to load, ms", timed=True),
    Axis("first_call_ms", "first call, ms", timed=True),
)
BENEFITS = (
    Axis("top1", "top-1 accuracy, %", 100, "top1_low", "top1_high", more_is_better=True),
    Axis("top5", "top-5 accuracy, %", 100, more_is_better=True),
    Axis("val_top1", "top-1 on the validation images, %", 100, "val_top1_low", "val_top1_high", more_is_better=True),
    Axis("agreement", "same answer as fp32, %", 100, more_is_better=True),
    Axis(
        "speedup",
        "times as fast as fp32 on eager PyTorch",
        1,
        "speedup_low",
        "speedup_high",
        timed=True,
        more_is_better=True,
    ),
)
AXES = {axis.metric: axis for axis in (*COSTS, *BENEFITS)}


def axis_of(metric: str, runs: list[Run], option: str) -> Axis:
    """Errors: UserError for a metric that no plot has, or that none of the runs has."""
    check_names([metric], AXES, option)
    check_names([metric], [name for name in AXES if any(name in run.record.metrics for run in runs)], option)
    return AXES[metric]


def drawable(axes: Iterable[Axis], runs: list[Run]) -> list[Axis]:
    return [axis for axis in axes if any(axis.metric in run.record.metrics for run in runs)]


def default_benefit(runs: list[Run]) -> Axis | None:
    """Accuracy: on the validation images where no run has seen the test images; None where there is none."""
    return next((AXES[name] for name in ("top1", "val_top1") if any(name in run.record.metrics for run in runs)), None)


def default_cost(runs: list[Run]) -> Axis | None:
    return next(iter(drawable((AXES["latency_ms"], *COSTS), runs)), None)
