"""Structured pruning, which removes whole channels. What is left is a smaller dense network that every engine runs."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from qexp.data.base import ImageData
from qexp.method.fine_tuning import FineTuningModule, FineTuningSession
from qexp.method.prune.dependency_graph import IMPORTANCES, Group, Removed, groups_of, members_of, removable, without
from qexp.method.prune.reduction import Reduction, made_once
from qexp.method.prune.sparse import Sparse, SparseModule
from qexp.types import UserError


class PruneChannels(Reduction):
    """Removes channels, the least important first, until the network is as many times smaller or faster as asked.

    Channels and their importances are found in dependency_graph.py. The logits are never pruned. Sparse learning
    (sparse.py) may press the channels towards zero before. The method writes channels.csv beside the graph.

    Raises:
        UserError: An option is unknown or out of range.
    """

    name = "prune_channels"

    def __init__(
        self, importance: str, round_to: int, least_share: float, steps: int, epochs_between: int, sparse: Sparse,
        **common: Any,
    ):  # fmt: skip
        super().__init__(**common)
        self.check_choice("importance", importance, IMPORTANCES)
        if not 0 <= least_share < 1:
            raise UserError(
                f"{self.name}: least_share={least_share} is out of range; give a share from 0 to less than 1."
            )
        self.check_whole(1, round_to=round_to, steps=steps)
        self.check_whole(0, epochs_between=epochs_between)
        self.importance, self.round_to, self.least_share = importance, round_to, least_share
        self.steps, self.epochs_between, self.sparse = steps, epochs_between, sparse

    def transform(self, network: nn.Module, data: ImageData, folder: Path) -> nn.Module:
        result = network
        with self.recipe.session(folder, network, data, self) as session:
            if self.sparse.epochs:
                learn = partial(self.sparsened, network, data, folder, session)
                result = made_once(session.folder / "sparse.safetensors", network, learn)
            for step in range(1, self.steps + 1):
                pruned = partial(self.pruned, result, network, data, self.ratio ** (step / self.steps), folder)
                result = made_once(session.folder / f"{step}-pruned.safetensors", network, pruned)
                epochs = self.recipe.epochs if step == self.steps else self.epochs_between
                tuned = partial(fine_tuned, result, session, str(step), epochs)
                result = made_once(session.folder / f"{step}-tuned.safetensors", network, tuned)
        (folder / "channels.csv").write_text(channels_csv(network, result))
        return result

    def sparsened(self, network: nn.Module, data: ImageData, folder: Path, session: FineTuningSession) -> nn.Module:
        """Copy the network, and train the copy while its channels are pressed towards zero, as `sparse` says."""
        groups = members_of(network, data)
        chosen = self.chosen(network, network, data, self.ratio, folder) if self.sparse.penalty == "growing" else {}
        learning = partial(SparseModule, sparse=self.sparse, groups=groups, chosen=chosen)
        return fine_tuned(copy.deepcopy(network), session, "sparse", self.sparse.epochs, learning)

    def pruned(self, network: nn.Module, original: nn.Module, data: ImageData, ratio: float, folder: Path) -> nn.Module:
        """Copy a network without the channels that `chosen` chooses, with the same arguments and errors."""
        return without(network, data, self.chosen(network, original, data, ratio, folder))

    def chosen(self, network: nn.Module, original: nn.Module, data: ImageData, ratio: float, folder: Path) -> Removed:
        """Choose as few channels to remove as are needed to reach the ratio.

        Args:
            network: The network to prune, which is not changed.
            original: The network before any pruning.
            data: The images that both are for.
            ratio: How many times less of the target the result shall have than `original`.
            folder: The artifact's folder. Networks to be timed are put beside it for the time being.

        Raises:
            UserError: The ratio cannot be reached.
        """
        groups = groups_of(network, data, self.importance)
        widths = {
            name: module.weight.shape[0]
            for name, module in original.named_modules()
            if name in {group.layer for group in groups}
        }
        order = self.order(groups, widths)
        try:
            without(network, data, removed(groups, order))
        except UserError:
            groups = removable(network, data, groups, removed(groups, order))
            order = self.order(groups, widths)
        count = self.fewest(
            lambda steps: without(network, data, removed(groups, order[:steps])), len(order), ratio, original, data,
            folder, f"least_share={self.least_share:g} and round_to={self.round_to}",
        )  # fmt: skip
        return removed(groups, order[:count])

    def order(self, groups: list[Group], widths: dict[str, int]) -> list[tuple[int, int]]:
        """Plan the removals, from the first to the last that is allowed.

        A layer loses its least important channels first. Each removal leaves a multiple of `round_to`, or of an eighth
        of the layer's width if that is less, and always of the group's number of sets.

        Args:
            groups: The channels that are there now.
            widths: Output channels of each layer before any pruning, by module path.

        Returns:
            For each removal, the index of the group and the number of channels that it loses.
        """
        steps = []
        for index, group in enumerate(groups):
            width, scores = widths[group.layer], group.scores.sort().values
            unit = math.lcm(min(self.round_to, max(1, width // 8)), group.sets)
            least = max(unit, self.least_share * width)
            left = group.channels
            while (after := (left - 1) // unit * unit) >= least:
                taken = scores[(group.channels - left) // group.sets : (group.channels - after) // group.sets]
                gone = 1 - after / width
                score = float(taken.max())  # never less than those of earlier removals, so sorting keeps their order
                steps.append(((score, gone) if self.scope == "global" else (gone, score), index, left - after))
                left = after
        return [(index, count) for _, index, count in sorted(steps)]


def removed(groups: list[Group], order: list[tuple[int, int]]) -> Removed:
    """Choose the least important channels of each group, as many as the removals in `order` take together."""
    counts = dict.fromkeys(range(len(groups)), 0)
    for index, count in order:
        counts[index] += count
    chosen = {}
    for index, count in counts.items():
        group = groups[index]
        lowest = group.scores.argsort(stable=True)[: count // group.sets]
        if len(lowest):
            chosen[group.layer] = sorted(
                int(i) + part * len(group.scores) for part in range(group.sets) for i in lowest
            )
    return chosen


def fine_tuned(
    network: nn.Module, session: FineTuningSession, stage: str, epochs: int,
    module: Callable[..., FineTuningModule] = FineTuningModule,
) -> nn.Module:  # fmt: skip
    """Train the network, delete its checkpoints, which are then no longer needed, and return it.

    Args:
        network: The network to train, in place.
        session: The session of the method.
        stage: Folder name of the checkpoints in that of the session.
        epochs: Passes over the training part, in which the recipe runs its whole course.
        module: What trains the network.
    """
    part = replace(session, recipe=session.recipe.shortened(epochs), folder=session.folder / stage)
    part.train(network, module)
    shutil.rmtree(part.folder, ignore_errors=True)
    return network


def channels_csv(network: nn.Module, result: nn.Module) -> str:
    """A table for people, of the output channels of each layer before and after pruning."""
    modules = dict(result.named_modules())
    rows = [
        f"{name},{module.weight.shape[0]},{modules[name].weight.shape[0]}"
        for name, module in network.named_modules()
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))
    ]
    return "\n".join(["layer,channels_before,channels", *rows, ""])
