"""Learning rates over a training, as multiples of those that the optimizer was given for its groups of parameters."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def triangular(optimizer: Optimizer, total_steps: int, first: float, rise: float, last: float) -> LambdaLR:
    """Let learning rates rise in a straight line and then fall in another.

    torch's OneCycleLR gives all groups of parameters one highest learning rate; here each keeps its own.

    Args:
        optimizer: Has the highest learning rate of each group.
        total_steps: Steps of the training.
        first: First learning rate, as a share of the highest.
        rise: Share of the steps in which it rises.
        last: Learning rate behind the last step, as a share of the highest.
    """
    peak = rise * total_steps

    def share(step: int) -> float:
        if step < peak:
            return first + (1 - first) * step / peak
        return last + (1 - last) * (total_steps - step) / max(1.0, total_steps - peak)

    return LambdaLR(optimizer, share)
