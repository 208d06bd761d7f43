"""Hydra takes sweepers from this package only, and imports it for every command: so qexp/search is imported when one runs."""

from __future__ import annotations

from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """options: as conf/hydra/sweeper/optuna.yaml explains them."""

    def __init__(self, **options: Any):
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        made = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.launcher, self.hydra_context, self.config = made, hydra_context, config

    def sweep(self, arguments: list[str]) -> None:
        from qexp.search.search import Options, search

        search(Options(**self.options), self, arguments)
