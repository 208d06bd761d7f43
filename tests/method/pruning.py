"""What tests of pruning share: channels that are gone, found without Torch-Pruning, and the network with these masked instead."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def distinct(network: nn.Module) -> nn.Module:
    """The network in float64 and eval mode, each channel of its batch norms with statistics of its own, by which it is known."""
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
    """`network` with zeros from every batch norm in the channels that `pruned` does not have, and from linear layers likewise."""
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
