"""Any classifier of torchvision by its name, with as many classes as the data has."""

from __future__ import annotations

from torch import nn
from torchvision import models

from qexp.types import UserError, nearest


def build(name: str, num_classes: int, in_channels: int) -> nn.Module:
    """Make a torchvision network x[B,3,H,W] -> logits[B,K] with random weights.

    Raises:
        UserError: The name is unknown, or the images are grey, which these networks do not take.
    """
    known = models.list_models(module=models)
    if name not in known:
        raise UserError(f"torchvision has no classifier {name!r}: {nearest(name, known)}")
    if in_channels != 3:
        raise UserError(f"torchvision's networks take colour images; set data.channels=3 (it is {in_channels}).")
    # In training, these two return auxiliary logits too, which no other classifier does.
    without_auxiliary = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return models.get_model(name, weights=None, num_classes=num_classes, **without_auxiliary)
