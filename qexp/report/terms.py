"""Puts the times of rows on equal terms, as if all had been taken at one moment.

Rows are measured minutes apart, and a machine drifts by more than two networks differ. What they have in common is the
baseline that each was timed in turns with, and those that could be the fastest may have been timed once more in one
heat (qexp/jobs/heat.py).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from qexp.metrics import METRICS
from qexp.records import FP32_ENGINE, Record

LATENCY, SPEEDUP, HEAT = METRICS["latency_ms"], METRICS["speedup"], METRICS["heat_ratio"]


def equal_terms(records: Sequence[Record]) -> list[dict[str, float]]:
    """The metrics of records, with latencies that tell which of them is faster.

    Args:
        records: Records of one model with the same images, batch size, threads and machine.

    Returns:
        The metrics of each record. Where every latency has a speed-up over the same baseline, the latency and its
        interval are those that the speed-up gives for the baseline's median over all rows. For rows of one heat, the
        ratios of the heat count instead.
    """
    found = [dict(record.metrics) for record in records]
    timed = [place for place, metrics in enumerate(found) if LATENCY.name in metrics]
    speedups = {place: _speedup(records[place]) for place in timed}
    if len(timed) < 2 or not all(speedups.values()):
        return found
    baseline = statistics.median(found[place][LATENCY.name] * speedups[place][0] for place in timed)
    for place in timed:
        middle, low, high = speedups[place]
        found[place] |= _latency(baseline / middle, baseline / high, baseline / low)
    return _with_heat(records, found)


def _with_heat(records: Sequence[Record], found: list[dict[str, float]]) -> list[dict[str, float]]:
    heat = [place for place, metrics in enumerate(found) if HEAT.name in metrics]
    if len(heat) < 2 or len({records[place].sweep for place in heat}) > 1:
        return found
    first = min(heat, key=lambda place: found[place][HEAT.name])
    leader = found[first][LATENCY.name]
    for place in heat:
        found[place] |= _latency(*(leader * found[place][name] for name in (HEAT.name, HEAT.low, HEAT.high)))
    return found


def _speedup(record: Record) -> tuple[float, ...]:
    """The speed-up of a row over its baseline with its interval, or nothing if it was not compared with one."""
    metrics = record.metrics
    if {SPEEDUP.name, *SPEEDUP.bounds} <= metrics.keys():
        return metrics[SPEEDUP.name], metrics[SPEEDUP.low], metrics[SPEEDUP.high]
    return (1.0, 1.0, 1.0) if is_baseline(record) else ()


def is_baseline(record: Record) -> bool:
    """Whether a row is what all rows of its device are compared with, and so has no speed-up itself."""
    engine = record.environment.get(FP32_ENGINE, "eager")
    return record.params.get("method") == "none" and record.params.get("engine") == engine


def _latency(middle: float, low: float, high: float) -> dict[str, float]:
    return {LATENCY.name: middle, LATENCY.low: low, LATENCY.high: high}
