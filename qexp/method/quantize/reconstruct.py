"""Post-training quantisation that learns, from calibration images alone, which weights to round up and which down.

The network is fitted piece by piece to what it computed in floating point. There are three published algorithms:

- `adaround` fits one layer at a time, and weights only (Nagel et al., "Up or Down? Adaptive Rounding for Post-Training
  Quantization", 2020).
- `brecq` fits one residual block at a time, and scales of activations too (Li et al., "BRECQ: Pushing the Limit of
  Post-Training Quantization by Block Reconstruction", 2021). Here the squared error is not weighted by gradients.
- `qdrop` does what `brecq` does, but leaves activations in floating point at random, by default half of them (Wei et
  al., "QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training Quantization", 2022).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qexp.data.base import ImageData
from qexp.method.quantize.base import Quantization
from qexp.method.quantize.blocks import Block, extract, residual_blocks, single_layers, value_of
from qexp.method.quantize.fake_quantize import FakeQuantize, WeightFakeQuantize, in_floating_point, quantizers
from qexp.method.quantize.numerics import dequantize, from_rows
from qexp.types import UserError, nearest

ALGORITHMS = ("qdrop", "brecq", "adaround")
LOW, HIGH = -0.1, 1.1  # the sigmoid is stretched so that it reaches 0 and 1 (AdaRound, equation 23)
WARM_UP = 0.2  # share of the iterations before weights are pushed to round up or down


@dataclass(frozen=True)
class Images:
    """What goes into a block and what has to come out of it, for N images.

    Attributes:
        rounded: The input [N,...], with all rounding before it in effect.
        exact: The input [N,...] in floating point.
        wanted: The output [N,...] in floating point.
    """

    rounded: Tensor
    exact: Tensor
    wanted: Tensor


class Reconstruct(Quantization):
    """Fits one block of the network after the other, by one of the algorithms whose papers are named above.

    Adam learns the rounding of weights and the scales of activations, each at a learning rate of its own.

    Raises:
        UserError: An option is unknown or out of range.
    """

    name = "reconstruct"

    def __init__(
        self, algorithm: str, iterations: int, batch_size: int, lr: float, scale_lr: float, rounding_weight: float,
        drop: float, seed: int, **common: Any,
    ):  # fmt: skip
        super().__init__(**common)
        if algorithm not in ALGORITHMS:
            raise UserError(f"There is no algorithm {algorithm!r} of reconstruction. {nearest(algorithm, ALGORITHMS)}")
        if iterations < 1 or batch_size < 1 or not 0 <= drop < 1:
            raise UserError(
                f"iterations={iterations}, batch_size={batch_size}, drop={drop}: give at least 1, at least 1, and 0 to "
                "less than 1."
            )
        self.algorithm, self.iterations, self.batch_size, self.lr, self.scale_lr = (
            algorithm,
            iterations,
            batch_size,
            lr,
            scale_lr,
        )
        self.rounding_weight, self.drop, self.seed = rounding_weight, drop if algorithm == "qdrop" else 0.0, seed

    def tune(self, prepared: GraphModule, data: ImageData) -> None:
        images = data.calibration()[:]
        blocks = single_layers(prepared) if self.algorithm == "adaround" else residual_blocks(prepared)
        generator = torch.Generator().manual_seed(self.seed)
        with Progress(transient=True, disable=not sys.stdout.isatty()) as progress:
            task = progress.add_task("Reconstructing", total=len(blocks) * self.iterations)
            for block in blocks:
                fitted = Fit(prepared, block, self, generator)
                for _ in fitted.steps(self.inputs(prepared, block, images)):
                    progress.advance(task)
                fitted.keep()

    def inputs(self, prepared: GraphModule, block: Block, images: Tensor) -> Images:
        rounded = value_of(prepared, block.source, images, self.calibration_batch)
        with in_floating_point(prepared):
            exact = value_of(prepared, block.source, images, self.calibration_batch)
            wanted = value_of(prepared, block.result, images, self.calibration_batch)
        return Images(rounded, exact, wanted)


class SoftRounding(nn.Module):
    """A weight that is rounded down, plus a learned share h(v) of one step that ends at 0 or 1.

    See AdaRound, equations 22 to 24.

    Args:
        weight: The weight in floating point.
        quantizer: Quantizer of the weight, whose scale is known.
    """

    def __init__(self, weight: Tensor, quantizer: FakeQuantize):
        super().__init__()
        self.quantizer, self.shape = quantizer, weight.shape
        exact = quantizer.rows(weight) / quantizer.scale[:, None]
        self.lower = exact.floor()
        share = ((exact - self.lower - LOW) / (HIGH - LOW)).clamp(1e-4, 1 - 1e-4)
        self.v = nn.Parameter(torch.logit(share))

    def h(self) -> Tensor:
        return (torch.sigmoid(self.v) * (HIGH - LOW) + LOW).clamp(0, 1)

    def on_grid(self, shares: Tensor) -> Tensor:
        grid, zero_point = self.quantizer.grid, self.quantizer.zero_point[:, None]
        integers = (self.lower + shares + zero_point).clamp(grid.quant_min, grid.quant_max)
        return from_rows(
            dequantize(integers, self.quantizer.scale[:, None], zero_point), self.shape, self.quantizer.axis
        )

    def forward(self, weight: Tensor) -> Tensor:
        return self.on_grid(self.h())

    def hard(self) -> Tensor:
        """The weight with every share rounded to 0 or 1."""
        return self.on_grid((self.h() >= 0.5).float())

    def undecided(self, beta: float) -> Tensor:
        """The loss term that is 0 when every share is 0 or 1. The smaller `beta` is, the farther it reaches."""
        return (1 - (2 * self.h() - 1).abs().pow(beta)).sum()


def chance(like: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """A mask in the shape of `like`, true with a probability that is rounded to a multiple of 1/256.

    Each number that is drawn serves eight values, since it is drawing that takes the time.
    """
    drawn = torch.empty((like.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return (drawn.view(torch.uint8)[: like.numel()] < round(256 * probability)).reshape(like.shape)


class Dropped(nn.Module):
    """A quantizer that leaves each value in floating point with a given probability (QDrop, equation 8)."""

    def __init__(self, quantizer: FakeQuantize, probability: float, generator: torch.Generator):
        super().__init__()
        self.quantizer, self.probability, self.generator = quantizer, probability, generator

    def forward(self, x: Tensor) -> Tensor:
        if not self.probability:
            return self.quantizer(x)
        return torch.where(chance(x, self.probability, self.generator), x, self.quantizer(x))


class Fit:
    """One block while it is fitted.

    Args:
        prepared: The calibrated graph, which `keep` changes.
        block: The block to fit, of which a copy is trained.
        options: The method, for its options.
        generator: Source of all random numbers.
    """

    def __init__(self, prepared: GraphModule, block: Block, options: Reconstruct, generator: torch.Generator):
        self.prepared, self.options, self.generator = prepared, options, generator
        self.graph = extract(prepared, block)
        self.roundings: dict[str, SoftRounding] = {}  # by the weight's name
        self.scales: list[nn.Parameter] = []
        found = quantizers(self.graph, every_name=True)
        for node in self.graph.graph.nodes:
            if node.op == "call_module" and node.target in found:
                self._replace(node, found[node.target])

    def _replace(self, node: Node, quantizer: FakeQuantize) -> None:
        source = node.args[0]
        if isinstance(quantizer, WeightFakeQuantize):
            assert isinstance(source, Node)
            name = str(source.target)
            rounding = self.roundings.get(name) or SoftRounding(_weight(self.prepared, source), quantizer)
            self.roundings[name] = rounding
            self.graph.set_submodule(str(node.target), rounding)
        else:
            learns = self.options.algorithm != "adaround" and not quantizer.grid.power_of_two
            # A scale that several nodes share is learned only once.
            if learns and not isinstance(quantizer.scale, nn.Parameter):
                quantizer.learn_scale()
                self.scales.append(quantizer.scale)  # type: ignore[arg-type]
            self.graph.set_submodule(str(node.target), Dropped(quantizer, self.options.drop, self.generator))

    def steps(self, images: Images) -> Iterator[None]:
        """Fit the block, yielding after each training step."""
        options = self.options
        roundings = list(self.roundings.values())
        adam = torch.optim.Adam([
            {"params": [rounding.v for rounding in roundings], "lr": options.lr},
            {"params": self.scales, "lr": options.scale_lr},
        ])  # fmt: skip
        for step in range(options.iterations):
            chosen = torch.randint(len(images.wanted), (options.batch_size,), generator=self.generator)
            x = images.rounded[chosen]
            if options.drop:
                x = torch.where(chance(x, options.drop, self.generator), images.exact[chosen], x)
            for group, lr in zip(adam.param_groups, (options.lr, options.scale_lr), strict=True):
                group["lr"] = lr if group is adam.param_groups[0] else lr * _cosine(step / options.iterations)
            loss = (self.graph(x) - images.wanted[chosen]).square().sum(1).mean()
            progress = (step / options.iterations - WARM_UP) / (1 - WARM_UP)
            if progress > 0:
                beta = 2 + 18 * (1 - progress)  # AdaRound anneals from 20 to 2
                loss = loss + options.rounding_weight * sum(rounding.undecided(beta) for rounding in roundings)
            adam.zero_grad()
            loss.backward()
            adam.step()
            yield

    def keep(self) -> None:
        """Put the rounded weights and the learned scales into the prepared graph for good."""
        with torch.no_grad():
            for name, rounding in self.roundings.items():
                attrgetter(name)(self.prepared).copy_(rounding.hard())
        for quantizer in quantizers(self.graph).values():
            quantizer.keep_scale()


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _weight(prepared: GraphModule, source: Node) -> Tensor:
    return attrgetter(str(source.target))(prepared).detach()  # a parameter, or a buffer with fixed filters
