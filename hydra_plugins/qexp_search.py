"""Makes searches sweepers of Hydra's, which takes sweepers from this package only.

Hydra imports the package for every command, so qexp/search and qexp/within_limits are imported only when a search runs.
"""

from __future__ import annotations

from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """The sweeper of `hydra/sweeper=optuna`.

    Args:
        **options: What conf/hydra/sweeper/optuna.yaml explains.
    """

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


class WithinSweeper(OptunaSweeper):
    """The sweeper of `hydra/sweeper=within`.

    Args:
        **options: What conf/hydra/sweeper/within.yaml explains.
    """

    def sweep(self, arguments: list[str]) -> None:
        from qexp.within_limits.search import Options, within

        within(Options(**self.options), self, arguments)
