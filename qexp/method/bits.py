"""Bit-widths: how many bits the weights and the input of each layer have."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from qexp.types import UserError, nearest

FLOAT = 32  # "bits" of what stays in floating point


@dataclass(frozen=True)
class BitWidths:
    """The bits of a layer's weights, and of its input (`activation`)."""

    weight: int
    activation: int

    @classmethod
    def parse(cls, bits: int | str) -> BitWidths:
        """Parse a number of bits, such as 4, or one each for weights and activations, such as `w4a8`.

        Raises:
            UserError: The bits have another form or are out of range.
        """
        found = re.fullmatch(r"w(\d+)a(\d+)", str(bits)) or re.fullmatch(r"(\d+)", str(bits))
        numbers = [int(group) for group in found.groups()] if found else []
        if not numbers or not all(2 <= number <= FLOAT for number in numbers):
            raise UserError(
                f"bits={bits} is out of range; give auto or a number of bits from 2 to 32, or weights and activations "
                "apart as in w4a8."
            )
        return cls(numbers[0], numbers[-1])

    def __str__(self) -> str:
        return f"int{self.weight}" if self.weight == self.activation else f"w{self.weight}a{self.activation}"

    @property
    def can_be_integers(self) -> bool:
        """Whether each is 2 to 8 bits or floating point, but not both are floating point."""
        return {self.weight, self.activation} <= {*range(2, 9), FLOAT} and self.weight + self.activation < 2 * FLOAT

    @property
    def is_float(self) -> bool:
        """Whether both stay in floating point."""
        return self.weight == self.activation == FLOAT

    @property
    def has_kernels(self) -> bool:
        """Whether integer engines have kernels for these bits."""
        return self.weight == self.activation == 8


def plan_bits(
    layers: Sequence[str],
    bits: BitWidths,
    first_last_bits: int | None = None,
    overrides: Mapping[str, int | str] | None = None,
) -> dict[str, BitWidths]:
    """Decide the bits of each layer.

    Args:
        layers: Names of the layers, in the order in which they are computed.
        bits: The bits of every layer that is no exception.
        first_last_bits: The fewest bits that the first and the last layer may have, since these lose the most. None
            treats them like all others.
        overrides: Bits by layer name, in which * stands for any characters. Where several match a layer, the last wins.

    Raises:
        UserError: An override matches no layer, or its bits are out of range.
    """
    plan = dict.fromkeys(layers, bits)
    for edge in (layers[0], layers[-1]) if first_last_bits else ():
        plan[edge] = BitWidths(max(bits.weight, first_last_bits or 0), max(bits.activation, first_last_bits or 0))
    for pattern, given in (overrides or {}).items():
        fitting = [layer for layer in layers if fnmatchcase(layer, pattern)]
        if not fitting:
            raise UserError(f"method.layer_bits: no layer is called {pattern!r}. {nearest(pattern, layers)}")
        plan.update(dict.fromkeys(fitting, BitWidths.parse(given)))
    return plan
