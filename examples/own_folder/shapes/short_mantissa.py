"""A method: weights keep a few bits of their mantissa, so that their file can be packed into less space."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from qexp.artifact import EngineSpec
from qexp.data.base import ImageData
from qexp.method.base import Compressed, Method
from qexp.method.graph import save_fp32


def rounded(weight: Tensor, mantissa_bits: int) -> Tensor:
    """Round each number to the nearest one with so many bits after the leading one of its mantissa."""
    mantissa, exponent = torch.frexp(weight)  # the mantissa is 0 or lies in 0.5 to 1
    steps = 2.0 ** (mantissa_bits + 1)
    return torch.ldexp(torch.round(mantissa * steps) / steps, exponent)


class ShortMantissa(Method):
    """Rounds the weights of convolutions and linear layers, and computes in fp32.

    Args:
        mantissa_bits: Bits of the mantissa that are kept, of the 23 that fp32 has.
    """

    name = "short_mantissa"
    supported_bits = (32,)

    def __init__(self, mantissa_bits: int):
        super().__init__(bits=32)
        self.mantissa_bits = mantissa_bits

    def apply(self, network: nn.Module, data: ImageData, engine_spec: EngineSpec, folder: Path) -> Compressed:
        changed = copy.deepcopy(network)
        with torch.no_grad():
            for module in changed.modules():
                if isinstance(module, (nn.Conv2d, nn.Linear)):
                    module.weight.copy_(rounded(module.weight, self.mantissa_bits))
        layers = save_fp32(changed, data, folder / "model.pt2")
        return Compressed("model.pt2", layers, label=f"weights with {self.mantissa_bits} bits of mantissa")
