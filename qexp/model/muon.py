"""Muon for convolutions (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)  # coefficients of Muon's authors, which raise small singular values quickly


def orthogonalised(matrix: Tensor, steps: int) -> Tensor:
    """Bring all singular values of a matrix near 1, by Newton-Schulz iterations that need only products.

    Each step replaces X by a X + b (X X^T) X + c (X X^T)^2 X.

    Args:
        matrix: matrix[M,N].
        steps: Number of iterations.

    Returns:
        The matrix[M,N] with the same singular vectors, in the same type.
    """
    a, b, c = QUINTIC
    x = matrix / (matrix.norm() + 1e-7)  # no singular value is above 1
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T  # of the two, the smaller product
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.T


class Muon(torch.optim.Optimizer):
    """Muon for the filters of convolutions, and SGD with Nesterov momentum for all other parameters.

    torch's own Muon takes matrices only. Here filters[O,I,H,W] count as a matrix[O,I*H*W]. Before each step they are
    scaled to the norm sqrt(O), since a batch norm behind them makes their norm meaningless.

    Args:
        parameters: The parameters of a network.
        lr: Learning rate of filters.
        momentum: Momentum of filters.
        steps: Newton-Schulz iterations of each step.
        matrix_lr: Learning rate of the weights of linear layers.
        vector_lr: Learning rate of biases and norms.
        sgd_momentum: Momentum of both.
        weight_decay: Weight decay of the weights of linear layers.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, momentum: float, steps: int, matrix_lr: float, vector_lr: float,
        sgd_momentum: float, weight_decay: float,
    ):  # fmt: skip
        for rate in (lr, matrix_lr, vector_lr):
            if rate < 0:
                raise ValueError(f"Invalid learning rate: {rate}")
        kinds: list[list[Tensor]] = [[], [], []]
        for parameter in parameters:
            kinds[0 if parameter.ndim == 4 else 1 if parameter.ndim > 1 else 2].append(parameter)
        filters, matrices, vectors = kinds
        sgd = {"steps": 0, "momentum": sgd_momentum}
        groups: list[dict[str, Any]] = [
            {"params": filters, "lr": lr, "momentum": momentum, "steps": steps, "weight_decay": 0.0},
            {"params": matrices, "lr": matrix_lr, "weight_decay": weight_decay, **sgd},
            {"params": vectors, "lr": vector_lr, "weight_decay": 0.0, **sgd},
        ]
        super().__init__([group for group in groups if group["params"]], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)
        return loss

    def _step(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        gradient = gradient.add(parameter, alpha=group["weight_decay"]) if group["weight_decay"] else gradient
        buffer = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(gradient))
        buffer.mul_(group["momentum"]).add_(gradient)
        update = gradient.add(buffer, alpha=group["momentum"])  # Nesterov's
        if group["steps"]:
            parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
            half = torch.bfloat16
            update = orthogonalised(update.flatten(1).to(half), group["steps"]).to(update.dtype).view_as(update)
        parameter.sub_(update, alpha=group["lr"])
