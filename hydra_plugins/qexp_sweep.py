"""Hydra's sweep over every combination, with a faster check, and a sweep over jobs that are listed one by one."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf

from qexp.errors import paths
from qexp.types import UserError, nearest


class ProductSweeper(BasicSweeper):
    """Runs every combination of the command line's values, in place of Hydra's sweeper `basic`.

    Before the first job, Hydra composes the configs of all jobs to see whether it can, which takes a tenth of a second
    each. Only the choices from config groups (`method=static`) and the set of keys decide that, so jobs that differ in
    nothing but the values of their keys are checked once.

    An option that only some of the choices of a group have (`method=none,prune method.sparsity=0.5`) is for these.
    """

    def __init__(self, max_batch_size: int | None, params: Any = None):
        super().__init__(max_batch_size, params)
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def split_arguments(self, overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:  # type: ignore[override]
        """All jobs in batches, each job with those options that its choices have, and none of them twice.

        Raises:
            UserError: There is an option that none of the choices has.
        """
        (jobs,) = super().split_arguments(overrides, None)
        choices: dict[str, set[str]] = {}
        for override in {override for job in jobs for override in job}:
            key, _, choice = override.partition("=")
            if self._is_group(key):
                choices.setdefault(key, set()).add(choice)
        swept = {group for group, chosen in choices.items() if len(chosen) > 1}
        without: dict[str, dict[str, bool]] = {}  # by key: whether each choice has it
        fitting = dict.fromkeys(tuple(self._fitting(job, swept, without)) for job in jobs)
        for key, has in without.items():
            group = key.partition(".")[0]
            if not any(has.values()):
                known = {path for config in self._composed.values() for path in paths(config[group], f"{group}.")}
                raise UserError(f"There is no {key} with any of {group}={','.join(has)}: {nearest(key, known)}")
            if not all(has.values()):
                lacking = ", ".join(choice for choice, there in has.items() if not there)
                print(f"{key} is for {', '.join(c for c, there in has.items() if there)}: {lacking} has no such option")
        made = [list(job) for job in fitting]
        size = max_batch_size or len(made)
        return [made[start : start + size] for start in range(0, len(made), size)]

    def _fitting(self, job: list[str], swept: set[str], without: dict[str, dict[str, bool]]) -> list[str]:
        """The overrides of a job without options of a swept group that the job's choice from it does not have."""
        keys = {override: override.partition("=")[0] for override in job}
        chosen = {key: override.partition("=")[2] for override, key in keys.items() if key in swept}
        kept = []
        for override in job:
            key = keys[override]
            choice = chosen.get(key.partition(".")[0])
            there = choice is None or "." not in key or self._has(key, tuple(o for o in job if keys[o] in chosen))
            if choice is not None and "." in key:
                without.setdefault(key, {})[choice] = there
            if there:
                kept.append(override)
        return kept

    def _is_group(self, key: str) -> bool:
        assert self.hydra_context
        return bool(self.hydra_context.config_loader.get_group_options(key))

    def _has(self, key: str, choices: tuple[str, ...]) -> bool:
        """Whether the config of these choices has a key."""
        if choices not in self._composed:
            assert self.hydra_context and self.config
            self._composed[choices] = self.hydra_context.config_loader.load_sweep_config(self.config, list(choices))
        node: Any = self._composed[choices]
        for name in key.split("."):
            if not isinstance(node, DictConfig) or node._is_none() or name not in node.keys():  # noqa: SIM118
                return False
            node = node._get_node(name)
        return True

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
        super().__init__(max_batch_size, params or OmegaConf.create())  # as Hydra does
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
        return [[*job, *shlex.split(row.run)] for job in super().get_job_batch() for row in self.rows]
