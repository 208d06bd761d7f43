"""Normalises batches of decoded images on whatever device they are."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from qexp.data.pixels import factors
from qexp.types import Preprocessing


def normalised(images: Tensor, how: Preprocessing) -> Tensor:
    """Turn images[B,H,W,C] uint8 into x[B,C,H,W] float32, in the channels_last memory format.

    Each value becomes (value / 255 * pixel_range - mean) / std of its channel. Images in float32, which a function of
    the user made, keep their values.
    """
    x = images
    if images.dtype == torch.uint8:
        scale, shift, _ = _constants(how, images.device)
        x = torch.addcmul(shift, images.float(), scale)
    # With one channel both memory orders are the same, but the strides would say channels_last to a convolution.
    return x.permute(0, 3, 1, 2) if how.channels > 1 else x.reshape(len(x), 1, *x.shape[1:3])


def mean_pixel(how: Preprocessing, device: torch.device) -> Tensor:
    """The pixel[C] uint8 that normalisation makes zero, as far as a pixel can be."""
    return _constants(how, device)[2]


@cache
def _constants(how: Preprocessing, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Scale[C] and shift[C] of the normalisation, and the mean pixel[C].

    They are kept on the device, because copying them to a GPU would wait for it each time.
    """
    scale, shift = (torch.from_numpy(values).to(device) for values in factors(how))
    middle = [round(255 * mean / how.pixel_range) for mean in how.mean]
    return scale, shift, torch.tensor(middle, device=device).clamp(0, 255).to(torch.uint8)
