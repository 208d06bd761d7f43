from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qexp.artifact import Artifact, EngineSpec
from qexp.files import file_digest
from qexp.records import Measurement, Record
from qexp.types import DataSpec, Preprocessing
from tests import configured


def make_record(**changes: Any) -> Record:
    """A finished record, with values changed as asked."""
    values: dict[str, Any] = {
        "kind": "compress", "key": "k1", "sweep": "monday", "status": "finished", "reason": "",
        "label": "vgg · static int8 · eager · batch 1",
        "params": {
            "model": "vgg", "data": "pets", "method": "static", "bits": 8, "engine": "eager", "batch_size": 1,
            "threads": 2, "seed": 0,
        },
        "config": {"model": {"id": "vgg", "widths": [8, 16]}, "bits": "auto", "force": False, "experiment": None},
        "measurements": (
            Measurement("top1", 0.9375, "fraction"), Measurement("latency_ms", 2.5, "ms", samples=(2.25, 2.5, 2.75)),
            Measurement("packed_size_mb", 1 / 3, "MB", "estimated"),
        ),
        "environment": {"cpu": "a processor", "versions": {"torch": "2"}, "governor": None},
        "command": "python compress.py",
        "created": "2026-01-02T03:04:05+00:00", "artifact": "outputs/artifacts/vgg",
        "texts": {"layers.csv": "layer,kind\nfc,linear"},
    }  # fmt: skip
    return Record(**{**values, **changes})


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of SQLite with MLflow's tables, which it takes MLflow seconds to make."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    configured.tracking("mlflow", uri=f"sqlite:///{file}").client.search_experiments()
    return file


@pytest.fixture
def record() -> Callable[..., Record]:
    return make_record


@pytest.fixture
def pets() -> DataSpec:
    return DataSpec(
        "pets", ("cat", "dog"), Preprocessing(3, (32, 32), (0.5,) * 3, (0.25,) * 3), digest="0123456789abcdef" * 4
    )


@pytest.fixture
def artifact(pets: DataSpec, tmp_path: Path) -> Path:
    """The folder of an artifact whose graph is no graph."""
    folder = tmp_path / "elsewhere" / "vgg"
    folder.mkdir(parents=True)
    (folder / "model.pt2").write_bytes(b"a graph")
    made = Artifact(
        folder=folder, key="vgg", engine_spec=EngineSpec(), graph="model.pt2", model="vgg", method="static", bits=8,
        label="static int8", data=pets,
        layers=(), parameters=10, macs=100, packed_bytes=10, reference="vgg-none",
        files={"model.pt2": file_digest(folder / "model.pt2")},
        source={"model": "vgg", "weights": "fedcba9876543210"}, versions={},
    )  # fmt: skip
    (folder / "artifact.json").write_text(json.dumps(made.to_json()))
    return folder
