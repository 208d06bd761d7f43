"""Accuracy control: layers go back to floating point until the network loses no more than was accepted.

Those whose rounding changes the predictions most go back first (sensitivity.py). How many of them have to is found with
few accuracy passes: 0, 1, 2, 4, ... until the accuracy holds, and then by bisection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from qexp.artifact import EngineSpec
from qexp.data.base import ImageData
from qexp.data.images import validation_images
from qexp.method.bits import FLOAT
from qexp.method.quantize.base import Quantization
from qexp.method.quantize.sensitivity import Sensitivity, as_csv, sensitivities
from qexp.types import Unsupported, UserError

Quantized = tuple[GraphModule, dict[str, str]]  # a calibrated graph, and notes for the record
SENSITIVITY_IMAGES = 256  # calibration images on which each layer is rounded alone, at most
GAINS_FILE = "accuracy_control.csv"
NAMED = 5  # layers that the note in a record names; the file has all of them


@dataclass(frozen=True)
class Controlled:
    """A calibrated graph that loses no more accuracy than was accepted.

    Attributes:
        graph: The calibrated graph.
        notes: What records say of it, by name.
        table: What rounding each layer alone costs, as CSV, those that went back to floating point first.
        floats: The layers that went back, those with the largest gain first.
    """

    graph: GraphModule
    notes: dict[str, str]
    table: str
    floats: tuple[str, ...]


@dataclass
class _Passes:
    """Accuracy passes with some layers in floating point.

    Attributes:
        quantized: Quantises the network with given bits of some layers.
        right: The share of the validation images that a model classifies correctly.
        before: That share of the network in fp32.
        points: Percentage points that may be lost.
        order: The layers, in the order in which they go back to floating point.
        lost: Percentage points lost, by the number of layers in floating point.
        held: The network with the last number of layers that held.
    """

    quantized: Callable[[dict[str, int]], Quantized]
    right: Callable[[Callable[[Tensor], Tensor]], float]
    before: float
    points: float
    order: list[Sensitivity]
    lost: dict[int, float] = field(default_factory=dict)
    held: Quantized | None = None

    def holds(self, count: int) -> bool:
        """Whether no more points are lost with the first `count` layers in floating point."""
        made = self.quantized({each.layer: FLOAT for each in self.order[:count]})
        self.lost[count] = 100 * (self.before - self.right(made[0]))
        held = self.lost[count] <= self.points + 1e-9
        if held:
            self.held = made
        return held


def controlled(
    method: Quantization, quantized: Callable[[dict[str, int]], Quantized], points: float, images: int | None,
    network: nn.Module, data: ImageData, engine_spec: EngineSpec,
) -> Controlled:  # fmt: skip
    """Find the fewest layers in floating point with which a network loses no more than `points`.

    Args:
        method: The method that quantises.
        quantized: Quantises the network by the method, with these bits of layers in addition to the method's own.
        points: Percentage points of top-1 on validation images that may be lost.
        images: How many validation images judge, spread over the classes, or None for all.
        network: The network in fp32.
        data: Source of the calibration images, and of the validation images.
        engine_spec: What the engine asks for.

    Raises:
        UserError: There are no validation images.
        Unsupported: Not even all layers in floating point are enough.
    """
    if not len(data.validation_indices):
        raise UserError(
            f"method.accept_points={points} is judged on validation images, and {data.name} has none. Give data with "
            "training images, of which a part validates."
        )
    bits = method.bits_of_layers(method.folded(network, data))
    widths = {layer: [] if width.is_float else [width] for layer, width in bits.items()}
    measured = sensitivities(method, network, data, engine_spec, widths, SENSITIVITY_IMAGES)

    def share(model: Callable[[Tensor], Tensor]) -> float:
        return right(model, data, method.calibration_batch, images)

    order = sorted(measured, key=lambda each: -each.loss_change)
    passes = _Passes(quantized, share, share(network), points, order)
    count = fewest(passes.holds, len(order))
    if count is None or passes.held is None:
        raise Unsupported(
            f"accept_points={points} cannot be held: {passes.lost[len(order)]:.2f} points are lost on validation "
            "images even with all layers in floating point. Accept more."
        )
    graph, notes = passes.held
    floats, judges = tuple(each.layer for each in order[:count]), len(validation_images(data, images)[1])
    told = told_of(order[:count], len(order), passes.lost, judges)
    return Controlled(graph, {**notes, "accuracy_control": told}, as_csv(order), floats)


def fewest(holds: Callable[[int], bool], most: int) -> int | None:
    """Find the least count that holds, where all greater ones are taken to hold too.

    Args:
        holds: Tells whether a count holds. It is asked at most once for each, and first for 0.
        most: The greatest count.

    Returns:
        The count, for which `holds` was true, or None if not even the greatest one holds.
    """
    failed, step = -1, 0
    while not holds(step):
        if step == most:
            return None
        failed, step = step, min(max(1, 2 * step), most)
    while step - failed > 1:
        middle = (failed + step) // 2
        if holds(middle):
            step = middle
        else:
            failed = middle
    return step


def right(model: Callable[[Tensor], Tensor], data: ImageData, batch: int, images: int | None = None) -> float:
    """The share of the validation images, or of so many of them, that a model classifies correctly."""
    chosen, labels = validation_images(data, images)
    with torch.no_grad():
        answers = torch.cat([model(x).argmax(1) for x in chosen.split(batch)])
    return float((answers == torch.from_numpy(labels)).double().mean())


def told_of(floats: Sequence[Sensitivity], layers: int, lost: Mapping[int, float], judges: int) -> str:
    """What a record says of the layers that went back to floating point.

    Args:
        floats: What rounding each of them alone would cost.
        layers: How many layers could have gone back.
        lost: Percentage points lost, by the number of layers in floating point.
        judges: How many validation images judged.
    """
    if not floats:
        return f"no layer had to go back to floating point: {lost[0]:.2f} points lost on {judges} validation images"
    names = [f"{each.layer} ({each.loss_change:.2g} nats)" for each in floats[:NAMED]]
    more = [f"and {len(floats) - NAMED} more in {GAINS_FILE}"] if len(floats) > NAMED else []
    return (
        f"{len(floats)} of {layers} layers in floating point: {', '.join([*names, *more])}; {lost[0]:.2f} → "
        f"{lost[len(floats)]:.2f} points lost on {judges} validation images, {len(lost)} accuracy passes"
    )
