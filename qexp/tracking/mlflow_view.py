"""MLflow as a view of the records on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class MlflowView:
    """uri: MLflow's tracking URI; experiment: the name under which all runs lie, flat."""

    def __init__(self, uri: str, experiment: str):
        self.uri, self.experiment = uri, experiment

    def training_logger(self, folder: Path, run_name: str, params: dict[str, Any]) -> Any:
        """Lightning's MLflow logger for the curves of the training in `folder`; a resumed training goes on in its run."""
        from pytorch_lightning.loggers import MLFlowLogger

        if self.uri.startswith("sqlite:///"):
            Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        memory = folder / "mlflow_run_id"
        run_id = memory.read_text() if memory.exists() else None
        logger = MLFlowLogger(self.experiment, run_name, self.uri, {"qexp.kind": "train"}, run_id=run_id)
        if run_id is None and logger.run_id:  # None on all but the first process
            logger.log_hyperparams(params)
            folder.mkdir(parents=True, exist_ok=True)
            memory.write_text(logger.run_id)
        return logger
