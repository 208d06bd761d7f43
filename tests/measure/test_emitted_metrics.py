"""What measures emit and what the table knows are the same."""

from __future__ import annotations

import json
import os
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qexp.artifact import FloatIslands
from qexp.data.decoded import write_part
from qexp.measure import energy
from qexp.measure.base import Context, Measure
from qexp.measure.candidate import Candidate
from qexp.measure.children import Limits
from qexp.measure.timing import LEAST_WINDOWS, Rules
from qexp.metrics import METRICS
from tests import configured
from tests.measure.conftest import IMAGES, SPEC
from tests.measure.fake_engines import CLASSES, Profiled

BRIEF = {"calls": 2, "window_s": 0, "warmup_calls": 1, "warmup_s": 0, "budget_s": 60, "resolution": 0}
OPTIONS: dict[str, dict[str, Any]] = {
    "accuracy": {"part": "both"}, "coverage": {}, "energy": {"seconds": 0.01},
    "latency": {"windows": LEAST_WINDOWS, **BRIEF}, "memory": {}, "operators": {},
    "parity": {"images": IMAGES, "least_agreement": 0, "decided": 4, "most_error": 1, "most_error_half": 1,
        "most_rounding": 99, "batch_size": 10},
    "size": {},
}  # fmt: skip
MEASURES: list[Measure] = [configured.measure(name, **options) for name, options in OPTIONS.items()]


@pytest.mark.integration
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or (os.cpu_count() or 1) < 2, reason="needs Linux, two cores")
def test_every_metric_of_the_table_is_measured_and_no_other(
    weights: list[np.ndarray],
    images: np.ndarray,
    tests_of: Any,
    make_artifact: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    folder, clock = tmp_path / "cache" / "data" / SPEC.cache_name, count()
    write_part(folder, "train", images, np.arange(IMAGES) % CLASSES)
    (folder / SPEC.evaluation_file("validation", None)).write_text(json.dumps([*range(20)]))
    monkeypatch.setattr(energy, "counters", lambda: lambda: float(next(clock)))
    artifacts = [
        make_artifact(str(i), each, sparsity=0.5, islands=FloatIslands(1, 2))
        for i, each in enumerate([*weights, 2 * weights[0]])
    ]
    candidates = [Candidate(artifact, Profiled(), 2, 2, Limits(120, None)) for artifact in artifacts]
    context = Context(candidates[0], candidates[1], tests_of(artifacts[0]), tmp_path / "cache", candidates[2])
    try:
        found = [measured for measure in MEASURES for measured in measure.measure(context)]
    finally:
        context.close()
    of_heats = {"heat_ratio", "heat_ratio_low", "heat_ratio_high"}  # which compare rows, at the end of a sweep
    assert {measured.name for measured in found} == {*METRICS} - of_heats
    assert not any(measured.description for measured in found)


def test_timing_and_the_table_agree_about_units() -> None:
    """The file that is copied to devices says them itself."""
    described = Rules(LEAST_WINDOWS, 1, 0, 1, 0, 0).describe([[1.0, 2.0]] * LEAST_WINDOWS, batch=2)
    assert {name: unit for name, (_, unit) in described.items()} == {name: METRICS[name].unit for name in described}


def test_units_are_those_of_the_names() -> None:
    """As far as names tell: `memory_mb`, `latency_low_ms`, `test_seconds`."""
    units = {
        "mb": "MB",
        "ms": "ms",
        "seconds": "s",
        "ns": "ns",
        "mib": "MiB",
        "share": "fraction",
        "ratio": "x",
        "m": "M",
    }
    told = {name: units[end] for name in METRICS if (end := name.rpartition("_")[2]) in units}
    assert len(told) > 15 and told == {name: METRICS[name].unit for name in told}
