"""Any classifier of torchvision by its name, with as many classes as the data has."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision import models

from qexp.model.pretrained import downloaded, taken_over
from qexp.types import Preprocessing, UserError, nearest


def preprocessing(name: str, in_channels: int) -> Preprocessing | None:
    """How images were prepared for torchvision's default weights of a network, as the weights say it themselves.

    Returns:
        The preprocessing, or None if the name is unknown, which `build` then says.
    """
    if name not in models.list_models(module=models):
        return None
    said = models.get_model_weights(name).DEFAULT.transforms()
    (side,), (resize_to,) = said.crop_size, said.resize_size
    return Preprocessing(
        3, (side, side), tuple(said.mean), tuple(said.std), "crop", resize_to, said.interpolation.value
    )


def build(name: str, num_classes: int, in_channels: int, pretrained: bool, **arguments: Any) -> nn.Module:
    """Make a torchvision network x[B,3,H,W] -> logits[B,K].

    Args:
        name: Name of the network.
        num_classes: Number K of classes.
        in_channels: Channels of the images, which must be 3.
        pretrained: Whether it gets torchvision's default weights. With other classes than theirs, the head stays
            random.
        **arguments: Further arguments of the network.

    Raises:
        UserError: The name is unknown, the images are grey, which these networks do not take, or the pretrained weights
            are not to be had or do not fit the arguments.
    """
    known = models.list_models(module=models)
    if name not in known:
        raise UserError(f"torchvision has no classifier {name!r}: {nearest(name, known)}")
    if in_channels != 3:
        raise UserError(f"torchvision's networks take colour images; set data.channels=3 (it is {in_channels}).")
    # In training, these two return auxiliary logits too, which no other classifier does.
    without_auxiliary = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    network = models.get_model(name, weights=None, num_classes=num_classes, **{**without_auxiliary, **arguments})
    if not pretrained:
        return network
    weights = models.get_model_weights(name).DEFAULT
    file = downloaded(weights.url, f"torchvision/{name}")

    def load() -> nn.Module:
        trained = models.get_model(name, weights=weights, **arguments)
        if getattr(trained, "transform_input", False) and not network.transform_input:
            raise UserError(
                f"The pretrained weights of {name} belong to a network that transforms its input. Give "
                "+model.transform_input=true too, also to commands that load what was trained from them."
            )
        return trained

    return taken_over(network, load, f"torchvision/{name}", str(weights), file)
