"""Sparse learning before channels are removed: a penalty presses what goes with a channel towards zero, all at once.

The penalty of a group of channels is 1/2 sum_k lambda_k I_k. Here I_k is the squared norm of all weights that go with
channel k, so that the gradient of each of them grows by lambda_k times the weight. The penalties differ in lambda_k:

* `growing` (Wang et al., "Neural Pruning via Growing Regularization", 2021, GReg-1): the channels that will be removed
  are known. Their lambda_k grows evenly from 0 to the strength, and that of the others is 0.
* `group_norm` (Fang et al., "DepGraph: Towards Any Structural Pruning", 2023, equation 5): lambda_k is at any time
  lambda 2^(alpha (max I - I_k) / (max I - min I)) for all channels, so that the weakest are pressed 2^alpha times as
  much as the strongest. The strength is the largest of these, lambda 2^alpha.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qexp.method.fine_tuning import FineTuningModule
from qexp.method.prune.dependency_graph import Members, Removed
from qexp.types import UserError, nearest

PENALTIES = ("growing", "group_norm")


@dataclass(frozen=True)
class Sparse:
    """How channels are pressed towards zero: the node `sparse` of conf/method/prune_channels.yaml, which explains it.

    Raises:
        UserError: An option is unknown or out of range.
    """

    epochs: int
    penalty: str
    strength: float
    alpha: float

    def __post_init__(self) -> None:
        if not isinstance(self.epochs, int) or self.epochs < 0:
            raise UserError(f"method.sparse.epochs={self.epochs} is out of range; give a whole number of at least 0.")
        if self.penalty not in PENALTIES:
            raise UserError(
                f"method.sparse: there is no penalty {self.penalty!r}. {nearest(str(self.penalty), PENALTIES)}"
            )
        if self.strength <= 0 or self.alpha < 0:
            raise UserError(
                f"method.sparse: strength={self.strength}, alpha={self.alpha}: a strength lies above 0, and alpha is "
                "at least 0."
            )


class SparseModule(FineTuningModule):
    """Trains a network with the penalty. Only the last epoch is kept, after which the channels are weakest.

    Args:
        *arguments: Those of FineTuningModule.
        sparse: The penalty.
        groups: The groups of channels.
        chosen: The channels that will be removed, for the penalty `growing`.
    """

    def __init__(self, *arguments: Any, sparse: Sparse, groups: Sequence[Members], chosen: Removed):
        super().__init__(*arguments)
        self.sparse, self.groups, self.chosen = sparse, groups, chosen

    @property
    def complete(self) -> bool:
        return self.current_epoch + 1 == self.trainer.max_epochs

    @torch.no_grad()
    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        weights = dict(self.network.named_parameters())
        for group in self.groups:
            add_penalty(weights, group, self.factors(weights, group))

    def factors(self, weights: Mapping[str, Tensor], group: Members) -> Tensor:
        """The factors lambda[C] of the channels of a group at this step."""
        if self.sparse.penalty == "group_norm":
            return group_norm_factors(channel_norms(weights, group), self.sparse.strength, self.sparse.alpha)
        factors = torch.zeros(group.channels)
        factors[self.chosen.get(group.layer, [])] = self.sparse.strength * self.progress
        return factors

    @property
    def progress(self) -> float:
        """How much of the training is over, the coming step included: from above 0 to 1."""
        return (self.global_step + 1) / float(self.trainer.estimated_stepping_batches)


def channel_norms(weights: Mapping[str, Tensor], group: Members) -> Tensor:
    """The sums [C] of the squares of all weights that go with each channel of a group.

    Args:
        weights: The parameters of the network by name.
        group: The group.
    """
    norms = torch.zeros(group.channels)
    for part in group.parts:
        weight = weights[part.parameter].detach()
        squares = weight.movedim(part.axis, 0).flatten(1).square().sum(1) if weight.dim() > 1 else weight.square()
        norms = norms.to(squares).index_add(0, part.channels.to(weight.device), squares[part.places])
    return norms


def group_norm_factors(norms: Tensor, strength: float, alpha: float) -> Tensor:
    """The factors [C] of the penalty `group_norm`, from the strength for the least of norms[C] to 2^-alpha times that.

    Channels with equal norms have the same factor.
    """
    span = (norms.max() - norms.min()).clamp_min(torch.finfo(norms.dtype).tiny)
    return strength * 2 ** (alpha * ((norms.max() - norms) / span - 1))


def add_penalty(weights: Mapping[str, Tensor], group: Members, factors: Tensor) -> None:
    """Add to the gradients of a group's weights those of 1/2 sum_k factors[k] I_k.

    Args:
        weights: The parameters of the network by name, with their gradients.
        group: The group.
        factors: The factor [C] of each channel.
    """
    for part in group.parts:
        weight = weights[part.parameter]
        if weight.grad is not None:
            along = torch.zeros(weight.shape[part.axis], dtype=weight.dtype, device=weight.device)
            along[part.places.to(weight.device)] = factors.to(along)[part.channels.to(weight.device)]
            shape = [-1 if axis == part.axis else 1 for axis in range(weight.dim())]
            weight.grad.add_(along.reshape(shape) * weight.detach())
