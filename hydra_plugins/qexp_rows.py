"""A sweep whose jobs are listed one by one, as the rows of a table that is to be reproduced."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra_plugins.qexp_product import ProductSweeper
from omegaconf import DictConfig, ListConfig, OmegaConf


class RowsSweeper(ProductSweeper):
    """Every combination of the command line's values and `params`, with every row in turn: conf/hydra/sweeper/rows.yaml explains both."""

    def __init__(self, rows: ListConfig, title: str, params: DictConfig | None, max_batch_size: int | None = None):
        super().__init__(max_batch_size, params or OmegaConf.create())  # type: ignore[arg-type]  # Hydra gives its own the same
        self.rows, self.title = rows, title

    def sweep(self, arguments: list[str]) -> Any:
        assert self.config is not None
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rows.json").write_text(json.dumps({"title": self.title, "rows": OmegaConf.to_container(self.rows)}))
        return super().sweep(arguments)

    def get_job_batch(self) -> Sequence[Sequence[str]]:
        return [[*job, *row.run.split()] for job in super().get_job_batch() for row in self.rows]
