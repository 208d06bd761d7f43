"""Hydra's own sweep of every combination, which checks its jobs in less time."""

from __future__ import annotations

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser


class ProductSweeper(BasicSweeper):
    """Every combination of the command line's values.

    Before the first job Hydra composes all of them, a tenth of a second each, to see whether it can. Only what is chosen of config
    groups (`method=static`) and which keys are given decides that: jobs that differ in the keys' values alone are checked once.
    """

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        decides = {override: self.deciding(override) for override in {override for job in batch for override in job}}
        different: dict[frozenset[str], Sequence[str]] = {}
        for job in batch:
            different.setdefault(frozenset(decides[override] for override in job), job)
        super().validate_batch_is_legal(list(different.values()))

    def deciding(self, override: str) -> str:
        """What of an override decides whether the config can be composed."""
        assert self.hydra_context
        parsed = OverridesParser.create().parse_override(override)
        group = self.hydra_context.config_loader.get_group_options(parsed.key_or_group)
        return override if group else parsed.get_key_element()


ConfigStore.instance().store(
    group="hydra/sweeper", name="basic", node=BasicSweeperConf(_target_=f"{__name__}.ProductSweeper"), provider="qexp"
)
