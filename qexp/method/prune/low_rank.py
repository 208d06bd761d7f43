"""Low rank: convolutions and linear layers become two smaller ones each, which every engine runs.

Factors and steps to lower ranks are in factors.py, and which layers can have them is found in factorable.py.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qexp.artifact import EngineSpec
from qexp.data.base import ImageData
from qexp.method.base import Compressed
from qexp.method.prune.base import PRUNABLE
from qexp.method.prune.factorable import Site, factorable, input_statistics
from qexp.method.prune.factors import FIRST, SCHEMES, Decomposition, Step, decompose, factored, steps_of
from qexp.method.prune.reduction import Reduction, made_once

USELESS = "no rank saves work"


class LowRank(Reduction):
    """Factorises layers, where least is lost for what is saved, until the network is as much smaller as asked.

    It writes ranks.csv beside the graph.

    Raises:
        UserError: An option is unknown or out of range.
    """

    name = "low_rank"

    def __init__(self, scheme: str, images: int, round_to: int, least_rank: int, **common: Any):
        super().__init__(**common)
        self.check_choice("scheme", scheme, SCHEMES)
        self.check_whole(1, round_to=round_to, least_rank=least_rank)
        self.check_whole(0, images=images)
        self.calibrates = images > 0
        self.scheme, self.images, self.round_to, self.least_rank = scheme, images, round_to, least_rank

    def apply(self, network: nn.Module, data: ImageData, engine_spec: EngineSpec, folder: Path) -> Compressed:
        made = super().apply(network, data, engine_spec, folder)
        assert made.network is not None
        reasons = Counter(reason for rank, reason in self.table(network, made.network, data).values() if not rank)
        left = ", ".join(f"{count} ({reason})" for reason, count in reasons.most_common())
        return replace(made, notes={**made.notes, "not_factorised": left} if left else made.notes)

    def transform(self, network: nn.Module, data: ImageData, folder: Path) -> nn.Module:
        with self.recipe.session(folder, network, data, self) as session:
            make = partial(self.factorised, network, data, folder)
            result = made_once(session.folder / "factorised.safetensors", network, make)
            session.train(result)
        rows = [f'{name},{rank},"{reason}"' for name, (rank, reason) in self.table(network, result, data).items()]
        (folder / "ranks.csv").write_text("\n".join(["layer,rank,why_none", *rows, ""]))
        return result

    def factorised(self, network: nn.Module, data: ImageData, folder: Path) -> nn.Module:
        """Copy the network with layers of as high a rank as reaches the ratio.

        Raises:
            UserError: The ratio cannot be reached.
        """
        sites, _ = self.sites(network, data)
        seen: Sequence[tuple[Tensor | None, Tensor | None]] = [(None, None)] * len(sites)
        if self.images:
            seen = input_statistics(network, data, sites, self.images)
        parts = [decompose(site.module.weight, site.axes, *each) for site, each in zip(sites, seen, strict=True)]
        order = self.order(sites, parts)
        count = self.fewest(
            lambda steps: with_ranks(network, sites, parts, order[:steps]), len(order), self.ratio, network, data,
            folder, f"least_rank={self.least_rank} and round_to={self.round_to}",
        )  # fmt: skip
        return with_ranks(network, sites, parts, order[:count])

    def order(self, sites: Sequence[Site], parts: Sequence[Decomposition]) -> list[Step]:
        """Plan the steps of all layers to lower ranks, from the first one to the last that is allowed."""
        steps = []
        for index, (site, part) in enumerate(zip(sites, parts, strict=True)):
            whole, each = site.costs(self.target)
            ranks = site.ranks(self.target, self.unit(site), self.least_rank)
            steps += steps_of(index, part.values, ranks, whole, each, hull=self.scope == "global")
        return sorted(steps, key=lambda step: step.price if self.scope == "global" else step.gone)

    def unit(self, site: Site) -> int:
        """What ranks are a multiple of: `round_to`, or an eighth of the layer's output channels if that is less."""
        return min(self.round_to, max(1, site.module.weight.shape[0] // 8))

    def sites(self, network: nn.Module, data: ImageData) -> tuple[list[Site], dict[str, str]]:
        """The layers that may be factorised, and the reason why not for the others, by module path."""
        found, reasons = factorable(network, data, SCHEMES[self.scheme])
        useless = [site for site in found if not site.ranks(self.target, self.unit(site), self.least_rank)]
        reasons |= {site.path: USELESS for site in useless}
        return [site for site in found if site not in useless], reasons

    def table(self, network: nn.Module, result: nn.Module, data: ImageData) -> dict[str, tuple[int, str]]:
        """The rank of each layer of `network` in `result`, and 0 and the reason where it has none."""
        _, reasons = self.sites(network, data)
        ranks = {name: len(module.weight) for name, module in result.named_modules() if hasattr(module, "weight")}
        return {
            name: (rank, "")
            if (rank := ranks.get(f"{name}.{FIRST}", 0))
            else (0, reasons.get(name, "more is lost than elsewhere"))
            for name, module in network.named_modules()
            if isinstance(module, PRUNABLE)
        }


def with_ranks(
    network: nn.Module, sites: Sequence[Site], parts: Sequence[Decomposition], steps: Sequence[Step]
) -> nn.Module:
    """Copy the network, with each layer at the rank of the last of its steps."""
    made = copy.deepcopy(network)
    for index, rank in {step.layer: step.rank for step in steps}.items():
        site, part = sites[index], parts[index]
        added = [bias for bias in (site.module.bias, part.bias(rank)) if bias is not None]
        bias = sum(added[1:], added[0].detach()) if added else None
        made.set_submodule(site.path, factored(site.module, *part.factors(rank), bias))
    return made
