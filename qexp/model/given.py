"""Networks that a Python program gives: a copy is taken, which later changes of the program's own do not reach."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from qexp.types import UserError


def taken(network: nn.Module, trains: bool = False) -> nn.Module:
    """Copy a network, on the CPU.

    Args:
        network: The network, in eval mode unless it is to be trained. Wrappers of torch.compile and DataParallel are
            taken off.
        trains: Whether it is to be trained, so that its mode does not matter.

    Raises:
        UserError: It is in training mode, is no module of Python, is not in fp32, or cannot be copied.
    """
    network = _unwrapped(network)
    if isinstance(network, torch.jit.ScriptModule):
        raise UserError(
            "The network is TorchScript, whose modules qexp cannot follow. Give the nn.Module that it was made from."
        )
    name = type(network).__name__
    training = [path or "the network itself" for path, module in network.named_modules() if module.training]
    if training and not trains:
        raise UserError(
            f"{name} is in training mode ({training[0]}), in which dropout is random and batch norm follows the batch. "
            "Call network.eval() first."
        )
    tensors = [*network.named_parameters(), *network.named_buffers()]
    if half := [path for path, tensor in tensors if tensor.is_floating_point() and tensor.dtype != torch.float32]:
        raise UserError(
            f"{name} is not in fp32: {half[0]} is {dict(tensors)[half[0]].dtype}. Give network.float(); method='half' "
            "makes 16 bits of it."
        )
    try:
        return copy.deepcopy(network).to("cpu")
    except Exception as error:  # modules may hold what cannot be copied, such as locks and generators
        raise UserError(
            f"{name} cannot be copied: {type(error).__name__}: {error}. Leave out what it holds beside its weights and "
            "settings."
        ) from error


def _unwrapped(network: Any) -> nn.Module:
    """The network itself.

    Raises:
        UserError: It is no network.
    """
    while isinstance(network, nn.Module) and (inner := _inner(network)) is not None:
        network = inner
    if not isinstance(network, nn.Module):
        raise UserError(
            f"The network is a {type(network).__name__}. Give a torch.nn.Module, or the name of a file in conf/model "
            "whose baseline was trained."
        )
    return network


def _inner(network: nn.Module) -> nn.Module | None:
    if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return network.module
    return getattr(network, "_orig_mod", None)  # of torch.compile
