"""What makes the artifact of a run a model of MLflow's, which it can serve, register and download: one small file beside the others."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import yaml

from qexp.types import Artifact, versions

LOADER = "qexp.serving"  # the code, which nothing in the folder holds


def mlmodel(artifact: Artifact, run: str, engine: str) -> str:
    """The file MLmodel of the artifact in a run that was measured on `engine`."""
    described: dict[str, Any] = {
        "artifact_path": "artifact",
        "run_id": run,
        "model_uuid": uuid.uuid4().hex,
        "utc_time_created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f"),
        "mlflow_version": versions("mlflow")["mlflow"],
        "metadata": {"model": artifact.model, "compression": artifact.label, "data": artifact.data.name},
        "flavors": {
            "python_function": {
                "loader_module": LOADER,
                "config": {"engine": engine, "threads": None},
                "python_version": versions()["python"],
            }
        },
    }
    return yaml.safe_dump(described, sort_keys=False)
