"""Channels that can be removed from a network, how important they are, and the network without them.

All of this relies on Torch-Pruning's dependency graph (Fang et al., "DepGraph: Towards Any Structural Pruning", 2023).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch_pruning as tp
from torch import Tensor, nn

from qexp.data.base import ImageData
from qexp.method.graph import example_input
from qexp.types import UserError

# Importances of channels that go together. Each is a mean over the layers of a group, and for each layer it is a sum
# over the weights that a channel takes along.
IMPORTANCES = {
    "l1": tp.importance.GroupMagnitudeImportance(p=1, normalizer=None),
    "l2": tp.importance.GroupMagnitudeImportance(p=2, normalizer=None),
    "bn_scale": tp.importance.BNScaleImportance(normalizer=None),  # |gamma| (Liu et al., "Network Slimming", 2017)
    # Molchanov et al., 2019, equation 8, with |.| in place of the square
    "taylor": tp.importance.GroupTaylorImportance(multivariable=True, normalizer=None),
}
TAYLOR_BATCH = 32  # images per gradient

# The indices of output channels by module path. Channels of other layers go with them.
Removed = Mapping[str, list[int]]


@dataclass(frozen=True)
class Group:
    """The output channels of a layer, each together with the channels of other layers that have to go with it.

    Attributes:
        layer: Module path of the layer.
        scores: Importances [C // sets]. Their mean is 1, so that layers can be compared.
        sets: How many sets of channels lose the same ones, because they belong to the groups of a grouped convolution.
            It is 1 if there is no such convolution.
    """

    layer: str
    scores: Tensor
    sets: int

    @property
    def channels(self) -> int:
        return len(self.scores) * self.sets


@dataclass(frozen=True)
class Member:
    """Where the channels of a group lie in one parameter.

    Attributes:
        parameter: The parameter's name.
        axis: The axis along which the channels lie.
        places: Their indices [N] along this axis.
        channels: Which channel [N] of the group each of them belongs to.
    """

    parameter: str
    axis: int
    places: Tensor
    channels: Tensor


@dataclass(frozen=True)
class Members:
    """All that belongs to the channels of a group.

    Attributes:
        layer: Module path of the layer whose output channels they are.
        channels: How many there are.
        parts: Where they lie in the weights of convolutions, linear layers and norms.
    """

    layer: str
    channels: int
    parts: tuple[Member, ...]


def groups_of(network: nn.Module, data: ImageData, importance: str) -> list[Group]:
    """Find all groups of channels that can be pruned, which are all but the logits.

    Args:
        network: The network, which is not changed.
        data: Source of the images that it is traced with, and of those that `taylor` needs.
        importance: How the importance of channels is measured, one of IMPORTANCES.

    Raises:
        UserError: Torch-Pruning cannot trace the network, or no channels have such an importance.
    """
    network = copy.deepcopy(network)
    groups = _groups(network, data)
    names = {module: name for name, module in network.named_modules()}
    found = []
    for group, scores in zip(groups, _scores(network, data, groups, importance), strict=True):
        # A group without the layers that the importance looks at, such as batch norms, has no scores.
        if scores is not None:
            sets = _sets(group)
            scores = scores.reshape(sets, -1).mean(0)
            found.append(Group(names[group[0].dep.target.module], scores / scores.mean().clamp_min(1e-30), sets))
    if not found:
        raise UserError(
            f"{type(network).__name__} has no channels with the importance {importance!r} that could be pruned."
        )
    return found


def members_of(network: nn.Module, data: ImageData) -> list[Members]:
    """Find the weights that go with the channels of each group.

    Those that read the channels of a grouped convolution's input, in groups, are left out, and so is what Torch-Pruning
    has lost count of behind a flatten.

    Args:
        network: The network, which is not changed.
        data: The images that it is traced with.

    Raises:
        UserError: Torch-Pruning cannot trace the network.
    """
    network = copy.deepcopy(network)
    names = {module: name for name, module in network.named_modules()}
    return [
        Members(names[group[0].dep.target.module], len(group[0].idxs), tuple(_members(group, names)))
        for group in _groups(network, data)
    ]


def _members(group: tp.Group, names: Mapping[nn.Module, str]) -> Iterator[Member]:
    for item in group:
        module, known = item.dep.target.module, None not in item.root_idxs
        axis = _axis(module, item.dep.handler)
        if known and axis is not None and getattr(module, "weight", None) is not None:
            places, channels = torch.tensor(item.idxs), torch.tensor(item.root_idxs)
            yield Member(f"{names[module]}.weight".lstrip("."), axis, places, channels)


def _axis(module: nn.Module, handler: object) -> int | None:
    """The axis of a module's weight that a function of Torch-Pruning shortens, or None if that is not known here."""
    if handler in (tp.prune_conv_in_channels, tp.prune_linear_in_channels):
        return 1 if getattr(module, "groups", 1) == 1 and not getattr(module, "transposed", False) else None
    if handler in (tp.prune_conv_out_channels, tp.prune_linear_out_channels, tp.prune_depthwise_conv_out_channels):
        return 0 if not getattr(module, "transposed", False) else None
    norms = (tp.prune_batchnorm_out_channels, tp.prune_layernorm_out_channels, tp.prune_groupnorm_out_channels)
    return 0 if handler in norms else None


def removable(network: nn.Module, data: ImageData, groups: list[Group], most: Removed) -> list[Group]:
    """The groups that can lose channels each for itself, without what forward expects of their number.

    Forward may say it (`x.view(-1, 1568)`, the heads of attention), and bare parameters may have it.

    Args:
        network: The network, which is not changed.
        data: The images that it is for.
        groups: The groups to try.
        most: The channels that each may lose at most.

    Raises:
        UserError: No group can, the last one for this reason.
    """
    found, refusal = [], None
    for group in groups:
        if group.layer in most:
            try:
                without(network, data, {group.layer: most[group.layer]})
                found.append(group)
            except UserError as error:
                refusal = error
    if not found and refusal:
        raise refusal
    return found


def without(network: nn.Module, data: ImageData, removed: Removed) -> nn.Module:
    """Copy the network without these channels, in eval mode.

    Raises:
        UserError: What is left does not fit together.
    """
    made = copy.deepcopy(network).eval()
    graph = _graph(made, data)
    try:
        for layer, channels in removed.items():
            module = made.get_submodule(layer)
            group = graph.get_pruning_group(module, graph.get_pruner_of_module(module).prune_out_channels, channels)
            group.prune()
        with torch.no_grad():
            made(example_input(data))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        raise UserError(
            f"Torch-Pruning cannot follow the channels through {type(network).__name__}: {str(error)[:300]}"
        ) from error
    for parameter in made.parameters():
        parameter.grad = None
    return made


def _groups(network: nn.Module, data: ImageData) -> list[tp.Group]:
    """All groups of output channels but the logits."""
    found = _graph(network, data).get_all_groups(root_module_types=[nn.Conv1d, nn.Conv2d, nn.Linear])
    return [group for group in found if not _holds_logits(group)]


def _graph(network: nn.Module, data: ImageData) -> tp.DependencyGraph:
    required = [parameter for parameter in network.parameters() if not parameter.requires_grad]
    for parameter in required:
        parameter.requires_grad_(True)  # Torch-Pruning follows gradients
    try:
        # An operation after the last layer makes sure that there is a node for the logits.
        with torch.enable_grad():
            return tp.DependencyGraph().build_dependency(
                network.eval(), example_input(data), forward_fn=lambda network, x: network(x) * 1, verbose=False
            )
    except Exception as error:
        raise UserError(f"Torch-Pruning cannot trace {type(network).__name__}: {str(error)[:300]}") from error
    finally:
        for parameter in required:
            parameter.requires_grad_(False)


def _holds_logits(group: tp.Group) -> bool:
    return any(item.dep.target.type == tp.ops.OPTYPE.OUTPUT for item in group)


def _sets(group: tp.Group) -> int:
    """How many groups of channels the convolutions and group norms in `group` have.

    Depthwise convolutions do not count, since their channels are independent of each other.
    """
    layers = [item.dep.target.module for item in group]
    convolutions = [m.groups for m in layers if isinstance(m, nn.modules.conv._ConvNd) and m.groups != m.in_channels]
    return math.lcm(*convolutions, *(m.num_groups for m in layers if isinstance(m, nn.GroupNorm)), 1)


def _scores(network: nn.Module, data: ImageData, groups: list[tp.Group], importance: str) -> list[Tensor | None]:
    """The importances [C] of the channels of each group, or None for a group that has no such importance.

    `taylor` needs gradients, which are those of the loss on calibration images.
    """

    def estimate(group: tp.Group) -> Tensor | None:
        try:
            return IMPORTANCES[importance](group)
        except IndexError:  # Torch-Pruning has lost count of the channels, behind a flatten for example
            return None

    if importance != "taylor":
        return [estimate(group) for group in groups]
    sums: list[Tensor | None] = [None] * len(groups)
    for images, labels in zip(
        data.calibration().split(TAYLOR_BATCH), data.calibration_labels().split(TAYLOR_BATCH), strict=True
    ):
        network.zero_grad()
        with torch.enable_grad():
            nn.functional.cross_entropy(network(images), labels).backward()
        for index, group in enumerate(groups):
            scores, before = estimate(group), sums[index]
            sums[index] = scores if before is None or scores is None else before + scores
    return sums
