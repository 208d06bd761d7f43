"""What tests of pruning share.

They find the channels that are gone without Torch-Pruning, and mask these in the network instead.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def distinct(network: nn.Module) -> nn.Module:
    """Give each channel of the batch norms statistics of its own, by which it is known.

    Returns:
        The same network, in float64 and eval mode.
    """
    generator = torch.Generator().manual_seed(1)
    for module in network.double().eval().modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            with torch.no_grad():
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
                module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
                module.weight.copy_(torch.randn(module.num_features, generator=generator))
                module.bias.copy_(torch.randn(module.num_features, generator=generator))
    return network


def masked(network: nn.Module, pruned: nn.Module) -> nn.Module:
    """Return `network` with zeros from batch norms and linear layers in the channels that `pruned` does not have."""
    made, left = copy.deepcopy(network), dict(pruned.named_modules())
    with torch.no_grad():
        for name, module in made.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                kept = torch.isin(_mean(module), _mean(left[name]))
                module.weight[~kept], module.bias[~kept] = 0, 0
            elif isinstance(module, nn.Linear):
                kept = torch.isin(module.bias, left[name].bias)  # type: ignore[arg-type]
                module.weight[~kept], module.bias[~kept] = 0, 0
    return made


def _mean(norm: nn.Module) -> Tensor:
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
    return norm.running_mean
