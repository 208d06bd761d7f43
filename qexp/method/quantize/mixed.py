"""Mixed precision: of the bits that a budget allows, most go to the layers that suffer most from rounding.

First each layer alone is rounded to each of the candidate bit-widths, on calibration images (sensitivity.py). Then an
integer program chooses a plan (bit_plan.py). Finally the plan is calibrated and converted as in static quantisation.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.fx import GraphModule

from qexp.artifact import EngineSpec
from qexp.data.base import ImageData
from qexp.method.base import Compressed
from qexp.method.bits import BitWidths
from qexp.method.quantize.base import Quantization
from qexp.method.quantize.bit_plan import (
    BitPlan,
    Budget,
    average_bits,
    check_layers,
    find_plan,
    plan_text,
    read_plan,
    weights_of,
)
from qexp.method.quantize.placement import weighted_layers
from qexp.method.quantize.sensitivity import Sensitivity, as_csv
from qexp.types import UserError


class Mixed(Quantization):
    """Searches for the bits of each layer under a budget (`Budget`), or reads them from a file.

    The search leaves the layers in `layer_bits` their bits, and gives the first and the last layer at least
    `first_last_bits`. All of these count towards the budget. A plan file (see `plan_text`) says the bits of every layer
    instead. Beside the graph, the method writes plan.yaml and, after a search, sensitivity.csv.

    Raises:
        UserError: Options are out of range or contradict each other.
    """

    name = "mixed"

    def __init__(
        self,
        candidates: Sequence[int],
        budget: Mapping[str, float | None],
        sensitivity_images: int,
        plan: str | None,
        **common: Any,
    ):
        super().__init__(**{**common, "bits": "auto"})  # whatever bits a sweep goes through
        if not candidates or not {*candidates} <= {*range(2, 9)}:
            raise UserError(
                f"method.candidates={list(candidates)} is out of range; give whole numbers of bits from 2 to 8."
            )
        if sensitivity_images < 1:
            raise UserError(f"method.sensitivity_images={sensitivity_images} is out of range; give at least 1.")
        if plan and self.layer_bits:
            raise UserError(
                "method.plan says the bits of every layer. Change them in that file and leave method.layer_bits out."
            )
        self.candidates, self.sensitivity_images = tuple(sorted({*candidates})), sensitivity_images
        # The file's content and not its path, because an artifact is known by the method's attributes.
        self.plan = as_options(read_plan(Path(plan))) if plan else {}
        self.budget = {} if plan else dict(budget)
        self.bits = "plan" if plan else str(Budget(**self.budget))
        self.only_eight = {*self.plan.values()} == {"w8a8"} if plan else self.candidates == (8,)

    @property
    def widths(self) -> BitWidths:
        """The most bits that the search may choose for a layer, or 8 if every layer has 8."""
        most = 8 if self.only_eight else self.candidates[-1]
        return BitWidths(most, most)

    @property
    def for_engines(self) -> bool:
        return super().for_engines and self.only_eight

    def label(self, engine_spec: EngineSpec) -> str:
        """What was asked for. The label of an artifact tells the bits that came of it."""
        return f"{self.name} {self.bits}"

    def bits_of_layers(self, graph: GraphModule) -> BitPlan:
        layers = weighted_layers(graph)
        check_layers(self.plan, layers)
        return {layer: BitWidths.parse(self.plan[layer]) for layer in layers}

    def apply(self, network: nn.Module, data: ImageData, engine_spec: EngineSpec, folder: Path) -> Compressed:
        if self.plan:
            return self._planned(network, data, engine_spec, folder)
        plan, table = find_plan(
            self, network, data, engine_spec, self.candidates, Budget(**self.budget), self.sensitivity_images
        )
        planned = copy.copy(self)  # artifacts are known by the options of this one, so they must not change
        planned.plan = as_options(plan)
        return planned._planned(network, data, engine_spec, folder, table)

    def _planned(
        self,
        network: nn.Module,
        data: ImageData,
        engine_spec: EngineSpec,
        folder: Path,
        table: tuple[Sensitivity, ...] = (),
    ) -> Compressed:
        made = super().apply(network, data, engine_spec, folder)
        plan = {layer: BitWidths.parse(bits) for layer, bits in self.plan.items()}
        texts = {"plan.yaml": plan_text(network, plan, table)} | ({"sensitivity.csv": as_csv(table)} if table else {})
        for name, text in texts.items():
            (folder / name).write_text(text)
        mean = average_bits(weights_of(network, list(plan)), plan)
        return replace(
            made, files=(*made.files, *texts), label=f"{self.name} {mean:.1f} bits{'' if self.fuse else ' unfused'}"
        )


def as_options(plan: BitPlan) -> dict[str, str]:
    """A plan as plain values."""
    return {layer: f"w{bits.weight}a{bits.activation}" for layer, bits in plan.items()}
