"""The metrics by which plots and verdicts compare runs (costs and benefits), and which runs may be compared."""

from __future__ import annotations

from collections.abc import Sequence

from qexp.metrics import HIGHER, LOWER, Metric, metrics_of, own_metrics
from qexp.report.runs import SAME_CALL, SAME_IMAGES, Run, check_names

COSTS = (
    "latency_ms", "latency_ms_per_image", "size_mb", "packed_size_mb", "zstd_size_mb", "memory_mb",
    "energy_mj_per_image", "macs_m", "load_ms", "first_call_ms",
)  # fmt: skip
BENEFITS = ("top1", "top5", "val_top1", "agreement", "speedup")


def costs(runs: Sequence[Run]) -> list[Metric]:
    """The costs that at least one of the runs has."""
    return _drawable(COSTS, LOWER, runs)


def benefits(runs: Sequence[Run]) -> list[Metric]:
    """The benefits that at least one of the runs has."""
    return _drawable(BENEFITS, HIGHER, runs)


def _drawable(names: Sequence[str], better: str, runs: Sequence[Run]) -> list[Metric]:
    known = metrics_of(run.record for run in runs)
    own = [metric for metric in own_metrics(known) if metric.better == better]
    return [*(known[name] for name in names if name in known), *own]


def check_axis(name: str, runs: Sequence[Run], option: str) -> None:
    """Check that plots can show a metric.

    Args:
        name: Name of the metric.
        runs: Runs to be plotted.
        option: Name of the option that chose the metric, for the message.

    Raises:
        UserError: The metric is no cost and no benefit, or none of the runs has it.
    """
    check_names([name], [metric.name for metric in (*costs(runs), *benefits(runs))], option)


def same(metric: Metric) -> tuple[str, ...]:
    """The names whose values two runs must share to be compared by the metric."""
    return SAME_IMAGES + SAME_CALL * metric.per_machine


def default_benefit(runs: Sequence[Run]) -> Metric | None:
    """Top-1 on the test images, or on the validation images if no run used the test images. None without either."""
    found = {metric.name: metric for metric in benefits(runs)}
    return found.get("top1") or found.get("val_top1")
