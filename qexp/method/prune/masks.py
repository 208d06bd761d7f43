"""Pruning masks by magnitude, for a share of the weights or for two of every four, as pure functions of tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Masks = dict[str, Tensor]  # by layer, each in the shape of the weight and True where a value is left


def magnitude_mask(weight: Tensor, sparsity: float) -> Tensor:
    """A mask that is False for the round(sparsity * N) of the N weights that have the least magnitude."""
    magnitudes = weight.detach().abs().reshape(-1)
    pruned = magnitudes.topk(round(sparsity * len(magnitudes)), largest=False, sorted=False).indices
    mask = torch.ones(len(magnitudes), dtype=torch.bool, device=weight.device)
    mask[pruned] = False
    return mask.reshape(weight.shape)


def local_masks(weights: Mapping[str, Tensor], sparsity: float) -> Masks:
    """Prune the same share of every layer."""
    return {name: magnitude_mask(weight, sparsity) for name, weight in weights.items()}


def global_masks(weights: Mapping[str, Tensor], sparsity: float) -> Masks:
    """Prune a share of all weights together, so that layers of small weights lose more."""
    together = magnitude_mask(torch.cat([weight.detach().reshape(-1) for weight in weights.values()]), sparsity)
    parts = together.split([weight.numel() for weight in weights.values()])
    return {name: part.reshape(weight.shape) for (name, weight), part in zip(weights.items(), parts, strict=True)}


def two_of_four_mask(weight: Tensor) -> Tensor | None:
    """Keep the two largest magnitudes in every four neighbouring input channels, as sparse tensor cores require.

    See Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021.

    Args:
        weight: weight[O,I,...].

    Returns:
        The mask, or None if I is not a multiple of four.
    """
    if weight.shape[1] % 4:
        return None
    last = weight.detach().abs().movedim(1, -1)
    fours = last.reshape(-1, 4)
    left = torch.zeros_like(fours, dtype=torch.bool).scatter_(1, fours.topk(2, dim=1).indices, True)
    return left.reshape(last.shape).movedim(-1, 1)


def gradual_sparsity(final: float, progress: float) -> float:
    """The sparsity to have at a point of the pruning phase.

    It rises fast while there is much to spare, and more slowly later. This is equation 1 of Zhu & Gupta, "To prune, or
    not to prune", 2017, starting from a dense network.

    Args:
        final: The sparsity at the end of the phase.
        progress: How much of the phase is over, from 0 to 1. What is above 1 counts as 1.
    """
    return final * (1 - (1 - min(1.0, progress)) ** 3)


@torch.no_grad()
def apply_masks(weights: Mapping[str, Tensor], masks: Masks) -> None:
    """Set what the masks leave out to +0.0, in place. A product with the mask would also give -0.0."""
    for name, mask in masks.items():
        weights[name].masked_fill_(~mask, 0.0)
