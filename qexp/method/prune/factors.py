"""Layers of low rank: two smaller layers in the place of one, whose weights are the factors of a matrix.

The weight[O,C,*K] of a layer becomes a matrix [C*K1, O*K2], where the first factor has the axes K1 of the kernel and
the second one the axes K2:

* `spatial` (Jaderberg et al., "Speeding up Convolutional Neural Networks with Low Rank Expansions", 2014, scheme 2): a
  kernel of k x k becomes k x 1, with R output channels, and then 1 x k.
* `channel` (Zhang et al., "Accelerating Very Deep Convolutional Networks", 2015): it becomes k x k, with R output
  channels, and then 1 x 1.

Both are the same for kernels of 1 x 1 and for linear layers.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SCHEMES = {"spatial": 1, "channel": 2}  # how many of the two axes of a kernel the first factor has
FIRST, SECOND = "first", "second"  # names of the two layers
LEAST = 1e-300  # share of the squared singular values that counts as kept at least
RIDGE = 1e-6  # least variance of a principal component of a layer's input, as a share of their mean, to divide by


@dataclass(frozen=True)
class Decomposition:
    """The singular value decomposition of a layer's weight, of which a rank R keeps the first R columns.

    Attributes:
        left: Factors [C*K1, N] by which the input is multiplied.
        values: Singular values [N], in descending order. The squared error of a rank is the sum of the squares of those
            that it leaves out.
        right: Factors [N, O*K2] that give the output.
        mean: Mean [C*K1] of the input, or None where the error is that of the weight alone.
        shape: Shape of the weight.
        axes: How many axes of the kernel the first factor has.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    mean: Tensor | None
    shape: tuple[int, ...]
    axes: int

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """The weights first[R,C,*K1] and second[O,R,*K2], with axes of length 1 where the other one has the kernel.

        The singular values are shared by both, so that both are of a similar size.
        """
        (outputs, inputs, *kernel), ones = self.shape, [1] * (len(self.shape) - 2)
        root = self.values[:rank].sqrt()
        first = (self.left[:, :rank] * root).T.reshape(rank, inputs, *kernel[: self.axes], *ones[self.axes :])
        right = (root[:, None] * self.right[:rank]).reshape(rank, outputs, *ones[: self.axes], *kernel[self.axes :])
        return first.contiguous(), right.transpose(0, 1).contiguous()

    def bias(self, rank: int) -> Tensor | None:
        """What the layer's answer to its mean input loses [O], which belongs to the bias, or None without a mean."""
        if self.mean is None:
            return None
        lost = (self.mean @ self.left[:, rank:] * self.values[rank:]) @ self.right[rank:]
        return lost.reshape(self.shape[0], -1).sum(1)


def as_matrix(weight: Tensor, axes: int) -> Tensor:
    """Turn weight[O,C,*K] into the matrix [C*K1, O*K2] in which K1 are the first `axes` axes of the kernel."""
    ordered = weight.movedim(0, 1 + min(axes, weight.dim() - 2))
    return ordered.reshape(weight.shape[1] * weight.shape[2 : 2 + axes].numel(), -1)


def decompose(weight: Tensor, axes: int, covariance: Tensor | None = None, mean: Tensor | None = None) -> Decomposition:
    """Decompose a weight so that each rank has the least error, which is that of the weight or that of its answers.

    With the covariance A of the input, the error of a matrix M^ in the place of M is the expected squared distance of
    the answers, tr (M - M^)^T A (M - M^), when the bias makes up for the mean (Zhang et al., 2015, section 2.2).
    Where the second factor has axes of the kernel, the parts of an answer along them count as uncorrelated.

    Args:
        weight: weight[O,C,*K].
        axes: How many axes of the kernel the first factor has.
        covariance: Covariance [C*K1, C*K1] of what the first factor reads, or None.
        mean: Mean [C*K1] of that, or None.
    """
    matrix = as_matrix(weight.detach().double(), axes)
    if covariance is None:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    else:
        variances, components = torch.linalg.eigh(covariance)
        least = (RIDGE * variances.mean()).clamp_min(torch.finfo(torch.float64).tiny)
        deviations = variances.clamp_min(least).sqrt()[:, None]
        left, values, right = torch.linalg.svd(deviations * (components.T @ matrix), full_matrices=False)
        left = components @ (left / deviations)
    return Decomposition(left, values, right, mean, tuple(weight.shape), axes)


def factored(layer: nn.Module, first: Tensor, second: Tensor, bias: Tensor | None) -> nn.Sequential:
    """Make the two layers in the place of one. Strides and paddings follow from the shapes of the weights.

    Args:
        layer: An nn.Conv2d without groups, or an nn.Linear.
        first: The first weight [R,C,*K].
        second: The second weight [O,R,*K].
        bias: The bias [O] of the second layer, or None.
    """
    pair: list[nn.Module] = []
    for index, weight in enumerate((first, second)):
        options: dict[str, Any] = {"bias": bias is not None and index == 1, "dtype": layer.weight.dtype}
        if isinstance(layer, nn.Conv2d):
            own = [(length > 1) == (index == 1) for length in second.shape[2:]]  # which axes of the kernel it has
            made: nn.Module = nn.Conv2d(
                weight.shape[1], weight.shape[0], tuple(weight.shape[2:]),  # type: ignore[arg-type]
                stride=_where(own, layer.stride, 1), dilation=_where(own, layer.dilation, 1),
                padding=layer.padding if isinstance(layer.padding, str) else _where(own, layer.padding, 0),
                padding_mode=layer.padding_mode, **options,
            )  # fmt: skip
        else:
            made = nn.Linear(weight.shape[1], weight.shape[0], **options)
        values = {"weight": weight} | ({"bias": bias} if options["bias"] else {})
        made.load_state_dict(values)
        pair.append(made)
    return nn.Sequential(OrderedDict(zip((FIRST, SECOND), pair, strict=True))).train(layer.training)


def _where(own: Sequence[bool], values: Sequence[int], otherwise: int) -> Any:
    return tuple(value if mine else otherwise for mine, value in zip(own, values, strict=True))


@dataclass(frozen=True)
class Step:
    """One step of a layer to a lower rank.

    Attributes:
        layer: Index of the layer.
        rank: The rank after the step.
        gone: The share of the layer's cost that is gone after it.
        price: What the step loses for what it saves.
    """

    layer: int
    rank: int
    gone: float
    price: float


def steps_of(layer: int, values: Tensor, ranks: Iterable[int], cost: int, cost_of_rank: int, hull: bool) -> list[Step]:
    """The steps of a layer to lower and lower ranks, each of which costs less than the one before.

    What is lost at a rank is the negative logarithm of the share of the squared singular values that is kept, so that
    the sum over layers is that of the product of these shares (Zhang et al., 2015, section 2.4). Each step of the lower
    convex hull of loss over cost has a higher price than the one before. So whoever takes steps of all layers in the
    order of their prices has the least loss for what is saved.

    Args:
        layer: Index of the layer.
        values: Its singular values.
        ranks: The ranks that it may have.
        cost: The cost of the layer as it is.
        cost_of_rank: What each rank costs.
        hull: Whether to leave out the ranks that are not on the hull.
    """
    energy = values.double().square()
    total, points = float(energy.sum()), [(cost, 0.0, 0)]
    for rank in sorted(ranks, reverse=True):
        kept = float(energy[:rank].sum()) / total if total else 1.0
        point = (rank * cost_of_rank, -math.log(max(kept, LEAST)), rank)
        while hull and len(points) > 1 and _price(points[-2], points[-1]) >= _price(points[-1], point):
            points.pop()
        points.append(point)
    pairs = zip(points, points[1:], strict=False)
    return [Step(layer, after[2], 1 - after[0] / cost, _price(before, after)) for before, after in pairs]


def _price(before: tuple[int, float, int], after: tuple[int, float, int]) -> float:
    return (after[1] - before[1]) / (before[0] - after[0])
