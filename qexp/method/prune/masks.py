"""Which weights are left: masks by magnitude, of a share of all or two of every four. Pure functions of tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Masks = dict[str, Tensor]  # True where a weight is left, in its shape


def magnitude_mask(weight: Tensor, sparsity: float) -> Tensor:
    """False for the round(sparsity * N) of the N weights that are least in magnitude."""
    magnitudes = weight.detach().abs().reshape(-1)
    pruned = magnitudes.topk(round(sparsity * len(magnitudes)), largest=False, sorted=False).indices
    mask = torch.ones(len(magnitudes), dtype=torch.bool, device=weight.device)
    mask[pruned] = False
    return mask.reshape(weight.shape)


def local_masks(weights: Mapping[str, Tensor], sparsity: float) -> Masks:
    """The same share of every layer."""
    return {name: magnitude_mask(weight, sparsity) for name, weight in weights.items()}


def global_masks(weights: Mapping[str, Tensor], sparsity: float) -> Masks:
    """A share of all weights together: layers of small weights lose more."""
    together = magnitude_mask(torch.cat([weight.detach().reshape(-1) for weight in weights.values()]), sparsity)
    parts = together.split([weight.numel() for weight in weights.values()])
    return {name: part.reshape(weight.shape) for (name, weight), part in zip(weights.items(), parts, strict=True)}


def two_of_four_mask(weight: Tensor) -> Tensor | None:
    """True for the two largest of every four neighbouring input channels of weight[O,I,...], as sparse tensor cores want it (Mishra et
    al., "Accelerating Sparse Deep Neural Networks", 2021); None where I is not a multiple of four."""
    if weight.shape[1] % 4:
        return None
    last = weight.detach().abs().movedim(1, -1)
    fours = last.reshape(-1, 4)
    left = torch.zeros_like(fours, dtype=torch.bool).scatter_(1, fours.topk(2, dim=1).indices, True)
    return left.reshape(last.shape).movedim(-1, 1)


def gradual_sparsity(final: float, progress: float) -> float:
    """How much is pruned when `progress` (0 to 1) of the pruning phase is over: fast while there is much to spare, then slower (Zhu &
    Gupta, "To prune, or not to prune", 2017, eq. 1, from a dense network)."""
    return final * (1 - (1 - min(1.0, progress)) ** 3)


@torch.no_grad()
def apply_masks(weights: Mapping[str, Tensor], masks: Masks) -> None:
    """Set what the masks leave out to +0.0, in place; a product would give -0.0 too."""
    for name, mask in masks.items():
        weights[name].masked_fill_(~mask, 0.0)
