from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qexp.types import Measurement, Record


def make_record(**changes: Any) -> Record:
    """A finished record, with values changed as asked."""
    values: dict[str, Any] = {
        "kind": "compress", "key": "k1", "sweep": "monday", "status": "finished", "reason": "",
        "label": "vgg · static int8 · eager · batch 1",
        "params": {
            "model": "vgg", "data": "pets", "method": "static", "bits": 8, "engine": "eager", "batch_size": 1, "threads": 2, "seed": 0,
        },
        "config": {"model": {"id": "vgg", "widths": [8, 16]}, "bits": "auto", "force": False, "experiment": None},
        "measurements": (
            Measurement("top1", 0.9375, "fraction"), Measurement("latency_ms", 2.5, "ms", samples=(2.25, 2.5, 2.75)),
            Measurement("packed_size_mb", 1 / 3, "MB", "estimated"),
        ),
        "environment": {"cpu": "a processor", "versions": {"torch": "2"}, "governor": None}, "command": "python compress.py",
        "created": "2026-01-02T03:04:05+00:00", "artifact": "outputs/artifacts/vgg", "texts": {"layers.csv": "layer,kind\nfc,linear"},
    }  # fmt: skip
    return Record(**{**values, **changes})


@pytest.fixture
def record() -> Callable[..., Record]:
    return make_record
