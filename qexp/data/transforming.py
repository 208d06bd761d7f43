"""Calls a function of the user that prepares images, in place of qexp's own steps."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from PIL import Image

from qexp.types import Preprocessing, UserError


def transformed(image: Image.Image, how: Preprocessing) -> np.ndarray:
    """The array[H,W,C] float32 that the function `how.transform` makes of an image.

    Raises:
        UserError: The function fails, or returns something else than x[C,H,W] of the right shape.
    """
    name, wanted = how.transform, (how.channels, *how.size)
    try:
        made: Any = function(name)(image)
    except UserError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"data.transform: {name} fails on a {image.mode} image of {image.size}: {why}") from error
    if not isinstance(made, torch.Tensor) or tuple(made.shape) != wanted:
        given = f"a tensor of {tuple(made.shape)}" if isinstance(made, torch.Tensor) else f"a {type(made).__name__}"
        raise UserError(
            f"data.transform: {name} must return a tensor (C,H,W) of {wanted}, as data.channels and data.image_size "
            f"say, and returned {given}."
        )
    return made.detach().to(torch.float32).permute(1, 2, 0).numpy()


@cache
def function(name: str) -> Any:
    """The function with a dotted name.

    Raises:
        UserError: It cannot be imported.
    """
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"data.transform={name} cannot be imported: {error}. Give MODULE.FUNCTION of a module that Python finds "
            "from here."
        ) from error
    if not callable(found):
        raise UserError(f"data.transform={name} is no function.")
    return found


def as_given(image: Any) -> torch.Tensor:
    """What a network takes, from what a dataset gave as just that.

    Args:
        image: x[C,H,W] of floats, as a tensor or an array.

    Raises:
        UserError: It is something else, which nothing says how to prepare.
    """
    x = torch.as_tensor(image) if isinstance(image, (np.ndarray, torch.Tensor)) else None
    if x is None or not x.is_floating_point():
        raise UserError(
            "The dataset of this network gave tensors, so that nothing says how an image becomes one. Give tensors "
            "x[C,H,W] of floats that are prepared like those, or compress the network with images of uint8 or files, "
            "and say with mean, std, ... how they are prepared."
        )
    return x
