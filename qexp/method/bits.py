"""How many bits the weights and the input of each layer have."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from qexp.types import UserError, nearest

FLOAT = 32  # "bits" of what stays in floating point


@dataclass(frozen=True)
class BitWidths:
    """Bits of a layer's weights and of its input."""

    weight: int
    activation: int

    @classmethod
    def parse(cls, bits: int | str) -> BitWidths:
        """4 or `w4a8`. Errors: UserError for anything else."""
        found = re.fullmatch(r"w(\d+)a(\d+)", str(bits)) or re.fullmatch(r"(\d+)", str(bits))
        numbers = [int(group) for group in found.groups()] if found else []
        if not numbers or not all(2 <= number <= FLOAT for number in numbers):
            raise UserError(
                f"bits={bits} is out of range; give auto or a number of bits from 2 to 32, or weights and activations apart as in w4a8."
            )
        return cls(numbers[0], numbers[-1])

    def __str__(self) -> str:
        return f"int{self.weight}" if self.weight == self.activation else f"w{self.weight}a{self.activation}"

    @property
    def can_be_integers(self) -> bool:
        """Whether both are 2 to 8 bits or floating point, and not both floating point."""
        return {self.weight, self.activation} <= {*range(2, 9), FLOAT} and self.weight + self.activation < 2 * FLOAT

    @property
    def has_kernels(self) -> bool:
        """Whether integer engines compute in these bits."""
        return self.weight == self.activation == 8


def plan_bits(
    layers: Sequence[str],
    bits: BitWidths,
    first_last_bits: int | None = None,
    overrides: Mapping[str, int | str] | None = None,
) -> dict[str, BitWidths]:
    """The bits of each of `layers`, which are in the order they compute in.

    first_last_bits: the least of the first and of the last layer, which lose the most; overrides: bits by layer name, with * for
    any characters; later ones win. Errors: UserError for an override that fits no layer.
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
