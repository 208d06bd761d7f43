"""Writes MLmodel, the small file that makes the artifact of a run an MLflow model.

MLflow can then serve, register and download it.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import yaml

from qexp.artifact import Artifact
from qexp.types import versions

LOADER = "qexp.serving"  # the module that loads the model, as the folder itself holds no code


def mlmodel(artifact: Artifact, run: str, engine: str) -> str:
    """Return the text of an artifact's MLmodel.

    Args:
        artifact: The artifact.
        run: MLflow's id of the run.
        engine: Name of the engine on which the run was measured.
    """
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
