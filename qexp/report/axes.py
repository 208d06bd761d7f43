"""What plots and verdicts compare runs by: metrics that cost, metrics that are worth it, and who may be compared."""

from __future__ import annotations

from collections.abc import Sequence

from qexp.metrics import HIGHER, LOWER, Metric, metrics_of, own_metrics
from qexp.report.runs import SAME_CALL, SAME_IMAGES, Run, check_names

COSTS = (
    "latency_ms", "latency_ms_per_image", "size_mb", "packed_size_mb", "zstd_size_mb", "memory_mb", "energy_mj_per_image", "macs_m",
    "load_ms", "first_call_ms",
)  # fmt: skip
BENEFITS = ("top1", "top5", "val_top1", "agreement", "speedup")


def costs(runs: Sequence[Run]) -> list[Metric]:
    """Those that any of the runs has."""
    return _drawable(COSTS, LOWER, runs)


def benefits(runs: Sequence[Run]) -> list[Metric]:
    """Those that any of the runs has."""
    return _drawable(BENEFITS, HIGHER, runs)


def _drawable(names: Sequence[str], better: str, runs: Sequence[Run]) -> list[Metric]:
    known = metrics_of(run.record for run in runs)
    own = [metric for metric in own_metrics(known) if metric.better == better]
    return [*(known[name] for name in names if name in known), *own]


def check_axis(name: str, runs: Sequence[Run], option: str) -> None:
    """Errors: UserError for a metric that no plot has, or that none of the runs has."""
    check_names([name], [metric.name for metric in (*costs(runs), *benefits(runs))], option)


def same(metric: Metric) -> tuple[str, ...]:
    """Names of which two runs must have the same values to be compared in that metric."""
    return SAME_IMAGES + SAME_CALL * metric.per_machine


def default_benefit(runs: Sequence[Run]) -> Metric | None:
    """Accuracy: on the validation images where no run has seen the test images; None where there is none."""
    found = {metric.name: metric for metric in benefits(runs)}
    return found.get("top1") or found.get("val_top1")
