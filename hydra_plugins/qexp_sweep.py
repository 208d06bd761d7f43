"""Hydra's sweep over every combination, with a faster check, and a sweep over jobs that are listed one by one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf


class ProductSweeper(BasicSweeper):
    """Runs every combination of the command line's values, in place of Hydra's sweeper `basic`.

    Before the first job, Hydra composes the configs of all jobs to see whether it can, which takes a tenth of a second
    each. Only the choices from config groups (`method=static`) and the set of keys decide that, so jobs that differ in
    nothing but the values of their keys are checked once.
    """

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        decides = {override: self.deciding(override) for override in {override for job in batch for override in job}}
        different: dict[frozenset[str], Sequence[str]] = {}
        for job in batch:
            different.setdefault(frozenset(decides[override] for override in job), job)
        super().validate_batch_is_legal(list(different.values()))

    def deciding(self, override: str) -> str:
        """The part of an override that decides whether the config can be composed."""
        assert self.hydra_context
        parsed = OverridesParser.create().parse_override(override)
        group = self.hydra_context.config_loader.get_group_options(parsed.key_or_group)
        return override if group else parsed.get_key_element()


ConfigStore.instance().store(
    group="hydra/sweeper", name="basic", node=BasicSweeperConf(_target_=f"{__name__}.ProductSweeper"), provider="qexp"
)


class RowsSweeper(ProductSweeper):
    """Runs every row of a list for every combination of the command line's values and of `params`.

    Args:
        rows: Jobs, one by one, as conf/hydra/sweeper/rows.yaml explains them.
        title: Title of the published table that the rows reproduce, or None.
        params: Further axes that all rows go through, or None.
        max_batch_size: How many jobs the launcher is given at once, or None for all.
    """

    def __init__(self, rows: ListConfig, title: str | None, params: DictConfig | None, max_batch_size: int | None):
        super().__init__(max_batch_size, params or OmegaConf.create())  # type: ignore[arg-type]  # as Hydra does
        self.rows, self.title = rows, title

    def sweep(self, arguments: list[str]) -> Any:
        assert self.config is not None
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        if self.title:
            (folder / "rows.json").write_text(
                json.dumps({"title": self.title, "rows": OmegaConf.to_container(self.rows)})
            )
        return super().sweep(arguments)

    def get_job_batch(self) -> Sequence[Sequence[str]]:
        return [[*job, *row.run.split()] for job in super().get_job_batch() for row in self.rows]
