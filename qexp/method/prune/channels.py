"""Structured pruning, which removes whole channels. What is left is a smaller dense network that every engine runs."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from qexp.artifact import Artifact, EngineSpec
from qexp.data.base import ImageData
from qexp.method.artifacts import write_artifact
from qexp.method.base import ANY_ENGINE, Compressed, Method
from qexp.method.fine_tuning import FineTuning, FineTuningSession
from qexp.method.graph import count_macs, save_fp32
from qexp.method.prune.base import NetworkMethod, restore, save_weights
from qexp.method.prune.dependency_graph import IMPORTANCES, Group, Removed, groups_of, removable, without
from qexp.types import UserError, nearest

TARGETS = {"macs": "MACs", "parameters": "parameters", "latency": "latency"}
SCOPES = ("global", "layer")


class Timer(Protocol):
    """Tells how much faster an engine runs one network than another."""

    @property
    def options(self) -> dict[str, Any]:
        """What decides its answers, as plain values."""

    def speedup(self, candidate: Artifact, reference: Artifact) -> float: ...


class PruneChannels(NetworkMethod):
    """Removes channels, the least important first, until the network is as many times smaller or faster as asked.

    Channels and their importances are found in dependency_graph.py. The logits are never pruned. The method writes
    channels.csv beside the graph.

    Raises:
        UserError: An option is unknown or out of range, or the target `latency` has no timer.
    """

    name = "prune_channels"

    def __init__(
        self, recipe: FineTuning, ratio: float, target: str, importance: str, scope: str, round_to: int,
        least_share: float, steps: int, epochs_between: int, timer: Timer | None,
    ):  # fmt: skip
        super().__init__(recipe, coded=False)
        for what, name, known in (
            ("target", target, TARGETS),
            ("importance", importance, IMPORTANCES),
            ("scope", scope, SCOPES),
        ):
            if name not in known:
                raise UserError(f"{self.name}: there is no {what} {name!r}. {nearest(str(name), known)}")
        if ratio <= 1:
            raise UserError(
                f"{self.name}: ratio={ratio} leaves nothing to prune; give a number above 1, 2 for half of the "
                f"{target}."
            )
        if not 0 <= least_share < 1:
            raise UserError(
                f"{self.name}: least_share={least_share} is out of range; give a share from 0 to less than 1."
            )
        for name, value, least in (
            ("round_to", round_to, 1),
            ("steps", steps, 1),
            ("epochs_between", epochs_between, 0),
        ):
            if not isinstance(value, int) or value < least:
                raise UserError(
                    f"{self.name}: {name}={value} is out of range; give a whole number of at least {least}."
                )
        self.ratio, self.target, self.importance, self.scope = float(ratio), target, importance, scope
        self.round_to, self.least_share, self.steps, self.epochs_between = round_to, least_share, steps, epochs_between
        self.timer = timer if target == "latency" else None
        if target == "latency" and self.timer is None:
            raise UserError(f"{self.name}: target=latency needs a timer, as in conf/method/prune_channels.yaml.")

    def label(self, engine_spec: EngineSpec) -> str:
        return f"{self.name} {self.ratio:g}x {TARGETS[self.target]}"

    def transform(self, network: nn.Module, data: ImageData, folder: Path) -> nn.Module:
        result = network
        with self.recipe.session(folder, network, data, self) as session:
            for step in range(1, self.steps + 1):
                pruned = partial(self.pruned, result, network, data, self.ratio ** (step / self.steps), folder)
                result = made_once(session.folder / f"{step}-pruned.safetensors", network, pruned)
                recipe = self.recipe if step == self.steps else self.recipe.shortened(self.epochs_between)
                step_session = FineTuningSession(recipe, session.folder / str(step), session.teacher, data)
                tuned = partial(fine_tuned, result, step_session)
                result = made_once(session.folder / f"{step}-tuned.safetensors", network, tuned)
        (folder / "channels.csv").write_text(channels_csv(network, result))
        return result

    def pruned(self, network: nn.Module, original: nn.Module, data: ImageData, ratio: float, folder: Path) -> nn.Module:
        """Remove as few channels as are needed to reach the ratio. Their number is found by bisection.

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
        with tempfile.TemporaryDirectory(prefix=".timed-", dir=folder.parent) as scratch:
            reached = partial(self.reached, original=original, data=data, scratch=Path(scratch))
            try:
                best = without(network, data, removed(groups, order))
            except UserError:
                groups = removable(network, data, groups, removed(groups, order))
                order = self.order(groups, widths)
                best = without(network, data, removed(groups, order))
            low, high = 0, len(order)
            most = reached(best)
            if most < ratio:
                raise UserError(
                    f"{self.name}: with least_share={self.least_share:g} and round_to={self.round_to} at most "
                    f"{most:.2f} times less {TARGETS[self.target]} can be reached, not {ratio:.2f} times. Give less of "
                    "these, or a smaller ratio."
                )
            while high - low > 1:
                middle = (low + high) // 2
                candidate = without(network, data, removed(groups, order[:middle]))
                if reached(candidate) >= ratio:
                    best, high = candidate, middle
                else:
                    low = middle
        return best

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

    def reached(self, network: nn.Module, original: nn.Module, data: ImageData, scratch: Path) -> float:
        """How many times less of the target `network` has than `original`. `scratch` is for networks to be timed."""
        if self.timer is not None:
            candidate = to_time(network, data, Path(tempfile.mkdtemp(dir=scratch)) / "candidate")
            return self.timer.speedup(candidate, to_time(original, data, scratch / "reference"))
        measured = [size_of(n, data, self.target) for n in (original, network)]
        return measured[0] / measured[1]


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


def size_of(network: nn.Module, data: ImageData, target: str) -> int:
    """The number of MACs for one image if the target is `macs`, otherwise the number of parameters."""
    return count_macs(network, data) if target == "macs" else sum(p.numel() for p in network.parameters())


def fine_tuned(network: nn.Module, session: FineTuningSession) -> nn.Module:
    """Train the network, delete its checkpoints, which are then no longer needed, and return it."""
    session.train(network)
    shutil.rmtree(session.folder, ignore_errors=True)
    return network


def made_once(file: Path, original: nn.Module, make: Callable[[], nn.Module]) -> nn.Module:
    """Make a network, or read it from a file if it was made before a kill.

    Args:
        file: The file that keeps its weights.
        original: The network that it is made from.
        make: Makes it.
    """
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial_file = file.with_suffix(".partial")
        save_weights(make(), partial_file)
        os.replace(partial_file, file)
    return restore(original, file)


class _AsItIs(Method):
    """Writes a network as it is, as an artifact to be timed."""

    name = "candidate"
    supported_bits = (32,)

    def __init__(self) -> None:
        super().__init__(bits=32)

    def apply(self, network: nn.Module, data: ImageData, engine_spec: EngineSpec, folder: Path) -> Compressed:
        return Compressed("model.pt2", save_fp32(network, data, folder / "model.pt2"))


def to_time(network: nn.Module, data: ImageData, folder: Path) -> Artifact:
    """The artifact of a network in a folder, which is written if it is not there yet."""
    if not folder.exists():
        write_artifact(_AsItIs(), network, data, ANY_ENGINE, {"model": folder.name, "weights": "random"}, folder, "")
    return Artifact.read(folder)


def channels_csv(network: nn.Module, result: nn.Module) -> str:
    """A table for people, of the output channels of each layer before and after pruning."""
    modules = dict(result.named_modules())
    rows = [
        f"{name},{module.weight.shape[0]},{modules[name].weight.shape[0]}"
        for name, module in network.named_modules()
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))
    ]
    return "\n".join(["layer,channels_before,channels", *rows, ""])
