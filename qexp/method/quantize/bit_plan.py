"""Bit plans, which say how many bits each layer gets: the integer program that finds a plan, and its file."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn
from yaml import YAMLError, safe_load

from qexp.artifact import EngineSpec
from qexp.data.base import ImageData
from qexp.method.artifacts import packed_bits
from qexp.method.bits import FLOAT, BitWidths, plan_bits
from qexp.method.layers import weight_named
from qexp.method.quantize.base import Quantization
from qexp.method.quantize.placement import weighted_layers
from qexp.method.quantize.sensitivity import Sensitivity, sensitivities
from qexp.types import UserError, nearest

BitPlan = dict[str, BitWidths]  # the bits of each layer by its module path
# The largest coefficient of the objective. HiGHS takes an answer for the best one when it is within 1e-6 of it, so
# coefficients have to be large.
LARGEST = 1e6


@dataclass(frozen=True)
class Budget:
    """The most that a network may take. Exactly one of the two limits is given, and the other is None.

    Attributes:
        average_bits: The most bits that a weight may have on average, over all layers.
        size_mb: The most that the packed network may take, in 10^6 bytes. Weights count at their bits, while their
            scales and all other parameters count in fp32.

    Raises:
        UserError: Both limits are given or none is, or the given one is not above 0.
    """

    average_bits: float | None = None
    size_mb: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.average_bits, self.size_mb) if value is not None]
        if len(given) != 1 or not given[0] > 0:
            raise UserError(
                f"method.budget has average_bits={self.average_bits} and size_mb={self.size_mb}. Give one of them, "
                "above 0, and null for the other, as in method.budget.average_bits=null method.budget.size_mb=0.15"
            )

    def __str__(self) -> str:
        return f"avg{self.average_bits:g}" if self.average_bits else f"{self.size_mb:g}MB"

    def cost(self, weight: Tensor, bits: BitWidths) -> int:
        """The number of bits that the weight of a layer counts for."""
        return weight.numel() * bits.weight if self.average_bits else _packed(weight, bits)

    def limit(self, network: nn.Module, weights: Mapping[str, Tensor]) -> int:
        """The number of bits that the weights of all layers may count for together.

        It is below 0 if the other parameters alone exceed the budget.
        """
        if self.average_bits:
            return math.floor(self.average_bits * sum(weight.numel() for weight in weights.values()) + 1e-6)
        assert self.size_mb
        return 8 * math.floor(self.size_mb * 1e6 + 1e-6) - _unpacked(network, weights)

    def check(
        self, network: nn.Module, weights: Mapping[str, Tensor], options: Mapping[str, Sequence[BitWidths]]
    ) -> None:
        """Check that the budget can be met.

        Args:
            network: The network in fp32.
            weights: The weight of each layer, by module path.
            options: The bit-widths that each layer may have, by module path.

        Raises:
            UserError: Even the cheapest options exceed the budget. The message says how much would have to be given.
        """
        least = {name: min(options[name], key=lambda bits: bits.weight) for name in weights}
        if sum(self.cost(weights[name], bits) for name, bits in least.items()) > self.limit(network, weights):
            key, value, unit = "size_mb", math.ceil(size_mb(network, weights, least) * 1e4) / 1e4, "MB"
            if self.average_bits:
                key, value, unit = "average_bits", math.ceil(average_bits(weights, least) * 1e3) / 1e3, "bits"
            raise UserError(
                f"method.budget.{key}={getattr(self, key)} cannot be met: with the fewest bits that method.candidates, "
                f"method.first_last_bits and method.layer_bits allow, it is {value} {unit}. Give at least that, or "
                "allow fewer bits."
            )


def _packed(weight: Tensor, bits: BitWidths) -> int:
    return FLOAT * weight.numel() if bits.weight == FLOAT else packed_bits(weight, bits.weight)


def _unpacked(network: nn.Module, weights: Mapping[str, Tensor]) -> int:
    """The number of bits that all parameters other than the layers' weights take."""
    return FLOAT * (sum(p.numel() for p in network.parameters()) - sum(weight.numel() for weight in weights.values()))


def average_bits(weights: Mapping[str, Tensor], plan: BitPlan) -> float:
    """The mean number of bits of a weight, over all layers of the plan."""
    return sum(weights[name].numel() * bits.weight for name, bits in plan.items()) / sum(
        weights[name].numel() for name in plan
    )


def size_mb(network: nn.Module, weights: Mapping[str, Tensor], plan: BitPlan) -> float:
    """The packed size of the whole network in 10^6 bytes."""
    return (
        math.ceil((sum(_packed(weights[name], bits) for name, bits in plan.items()) + _unpacked(network, weights)) / 8)
        / 1e6
    )


def weights_of(network: nn.Module, layers: Sequence[str]) -> dict[str, Tensor]:
    """The weight of each layer, by its name."""
    return {name: weight_named(network, name).detach() for name in layers}


def allocate(losses: Sequence[Sequence[float]], costs: Sequence[Sequence[int]], limit: int) -> list[int]:
    """Choose one option for each layer so that the losses have the least sum and the costs do not exceed the limit.

    The answer is exact. HiGHS finds it by branch and bound.

    Args:
        losses: The loss of every option of every layer, losses[layer][option].
        costs: The cost of every option of every layer, costs[layer][option].
        limit: The largest sum of costs.

    Returns:
        The index of the chosen option of each layer.

    Raises:
        ValueError: Even the cheapest options exceed the limit.
    """
    sizes = [len(options) for options in losses]
    loss, cost = np.concatenate(losses), np.concatenate(costs)
    layer = np.repeat(np.arange(len(sizes)), sizes)
    one_each = (layer == np.arange(len(sizes))[:, None]).astype(float)
    # Division leaves the constraint the same, in small whole numbers for which the solver's tolerances do not matter.
    divisor = np.gcd.reduce(cost)
    within = LinearConstraint((cost // divisor)[None, :], ub=limit // divisor)
    answer = milp(
        loss * (LARGEST / max(loss.max(), np.finfo(float).tiny)), integrality=np.ones(len(loss)), bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), within], options={"mip_rel_gap": 0},
    )  # fmt: skip
    if answer.x is None:
        raise ValueError(f"no options cost {limit} or less together: {answer.message}")
    return [int(np.argmax(answer.x[layer == index])) for index in range(len(sizes))]


def find_plan(
    method: Quantization,
    network: nn.Module,
    data: ImageData,
    engine_spec: EngineSpec,
    candidates: Sequence[int],
    budget: Budget,
    images: int,
) -> tuple[BitPlan, tuple[Sensitivity, ...]]:
    """Find the bits with which all layers together change the loss least within the budget.

    The integer program is the one of Yao et al., "HAWQ-V3: Dyadic Neural Network Quantization", 2021, section 3.4: one
    choice of bits per layer, the least sum of loss changes, and a bound on the sum of sizes. There the loss change is
    estimated from the trace of the Hessian, while here it is measured, one layer at a time. In both, the changes of the
    layers are taken to add up.

    Args:
        method: The method that quantises. Its first_last_bits and layer_bits say which layers have other bits.
        network: The network in fp32.
        data: Source of the calibration images.
        engine_spec: What the engine asks for.
        candidates: Numbers of bits to choose from, for a layer's weights and its input alike.
        budget: What the plan has to meet.
        images: How many calibration images each candidate is tried on.

    Returns:
        The plan, and the table of sensitivities that it was chosen by.

    Raises:
        UserError: The budget cannot be met.
    """
    layers = weighted_layers(method.folded(network, data))
    uniform = [BitWidths(bits, bits) for bits in candidates]
    plans = [plan_bits(layers, bits, method.first_last_bits, method.layer_bits) for bits in uniform]
    options = {layer: list(dict.fromkeys(plan[layer] for plan in plans)) for layer in layers}
    weights = weights_of(network, layers)
    budget.check(network, weights, options)

    widths = {layer: list(dict.fromkeys([*uniform, *options[layer]])) for layer in layers}
    table = sensitivities(method, network, data, engine_spec, widths, images)
    losses = {(each.layer, each.bits): each.loss_change for each in table}
    chosen = allocate(
        [[losses[layer, bits] for bits in options[layer]] for layer in layers],
        [[budget.cost(weights[layer], bits) for bits in options[layer]] for layer in layers],
        budget.limit(network, weights),
    )
    return {layer: options[layer][index] for layer, index in zip(layers, chosen, strict=True)}, table


def plan_text(network: nn.Module, plan: BitPlan, table: Sequence[Sensitivity] = ()) -> str:
    """Write a plan as YAML: what it reaches as a whole, then one line per layer.

    Args:
        network: The network in fp32.
        plan: The bits of each layer.
        table: Measured sensitivities. A layer's line shows those for its bits, if the table has them.
    """
    weights = weights_of(network, list(plan))
    measured = {(each.layer, each.bits): each for each in table}
    lines = [
        "# Bits of each layer's weights and input: 2 to 8, 32 for floating point, or apart as w4a8.",
        "# To try others, edit `bits` in a copy and give it with method.plan=FILE; nothing else is read.",
        f"average_bits: {average_bits(weights, plan):.4f}  # of a weight",
        f"size_mb: {size_mb(network, weights, plan):.6f}  # packed, of the whole network, in 10^6 bytes",
    ]
    if all(key in measured for key in plan.items()):
        change = sum(measured[key].loss_change for key in plan.items())
        lines.append(f"loss_change: {change:.4e}  # nats, sum of the layers', each of which was rounded alone")
    lines.append("layers:")
    width = max(len(json.dumps(name)) for name in plan)
    for name, bits in plan.items():
        text = str(bits.weight) if bits.weight == bits.activation else str(bits)
        entry = f"bits: {text}, parameters: {weights[name].numel()}"
        if found := measured.get((name, bits)):
            entry += f", loss_change: {found.loss_change:.4e}, sqnr_db: {found.sqnr_db:.2f}"
        lines.append(f"  {json.dumps(name) + ':':{width + 1}} {{{entry}}}")
    return "\n".join(lines) + "\n"


def read_plan(file: Path) -> BitPlan:
    """Read the bits from a file of the form that `plan_text` writes.

    Raises:
        UserError: The file cannot be read or is not valid. The message names the file and says what is wrong.
    """
    try:
        content = safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise UserError(f"method.plan={file} cannot be read: {error}") from error
    layers = content.get("layers") if isinstance(content, dict) else None
    if not isinstance(layers, dict) or not layers:
        raise UserError(
            f"method.plan={file} has no `layers`; give a file like the plan.yaml that method=mixed writes beside its "
            "graph."
        )
    bits = {str(name): entry.get("bits") if isinstance(entry, dict) else entry for name, entry in layers.items()}
    return {name: _bits(file, name, given) for name, given in bits.items()}


def _bits(file: Path, layer: str, given: object) -> BitWidths:
    with suppress(UserError):
        bits = BitWidths.parse(str(given))
        if {bits.weight, bits.activation} <= {*range(2, 9), FLOAT}:
            return bits
    raise UserError(
        f"method.plan={file}: bits of {layer} are {given!r}; give 2 to 8, {FLOAT} for floating point, or apart as in "
        "w4a8."
    )


def check_layers(plan: Collection[str], layers: Sequence[str]) -> None:
    """Check that a plan and a network have the same layers.

    Raises:
        UserError: One has layers that the other lacks. The message names them.
    """
    unknown, missing = [name for name in plan if name not in layers], [name for name in layers if name not in plan]
    if unknown:
        raise UserError(
            f"method.plan has layers that the network has not: {', '.join(unknown)}. {nearest(unknown[0], layers)}"
        )
    if missing:
        raise UserError(
            f"method.plan says nothing of these layers of the network: {', '.join(missing)}. Give the bits of each."
        )
