"""Factors of layers: their errors are those of Eckart and Young, and two layers compute what one does."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qexp.method.prune.factors import as_matrix, decompose, factored, steps_of

LAYERS: list[Any] = [
    lambda: nn.Conv2d(4, 6, 3, padding=1),
    lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
    lambda: nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(0, 4), dilation=(1, 2)),
    lambda: nn.Conv2d(4, 6, (1, 7), stride=2, padding=(0, 3)),
    lambda: nn.Conv2d(4, 6, (7, 1), stride=(1, 3), padding=(3, 0)),
    lambda: nn.Conv2d(4, 6, 5, padding="same", padding_mode="reflect"),
    lambda: nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="circular"),
    lambda: nn.Conv2d(4, 6, 1, stride=2),
]


def rebuilt(weight: torch.Tensor, axes: int, rank: int) -> np.ndarray:
    """The weight [O,C,H,W] that two factors stand for, written out as a sum over ranks."""
    first, second = (factor.numpy() for factor in decompose(weight, axes).factors(rank))
    made = np.zeros(weight.shape)
    for o, c, i, j in itertools.product(*map(range, weight.shape)):
        (i1, i2), (j1, j2) = ((i, 0) if first.shape[2] > 1 else (0, i)), ((j, 0) if first.shape[3] > 1 else (0, j))
        made[o, c, i, j] = sum(first[r, c, i1, j1] * second[o, r, i2, j2] for r in range(rank))
    return made


@pytest.mark.parametrize(("axes", "rows"), [(1, 5 * 3), (2, 5 * 3 * 2)])
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_the_error_of_a_rank_is_the_tail_of_the_singular_values(axes: int, rows: int, rank: int) -> None:
    weight = torch.randn(7, 5, 3, 2, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)
    w = weight.numpy()
    matrix = np.array([
        [w[o, c, i, j] for o in range(7) for j in range(2)] if axes == 1 else [w[o, c, i, j] for o in range(7)]
        for c, i, j in itertools.product(range(5), range(3), range(1 if axes == 1 else 2))
    ]) if axes == 2 else np.array([
        [w[o, c, i, j] for o in range(7) for j in range(2)] for c, i in itertools.product(range(5), range(3))
    ])  # fmt: skip
    assert matrix.shape[0] == rows
    np.testing.assert_array_equal(as_matrix(weight, axes).numpy(), matrix)
    values = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(decompose(weight, axes).values.numpy(), values, rtol=1e-10)
    lost = np.linalg.norm(w - rebuilt(weight, axes, rank))
    np.testing.assert_allclose(lost, np.sqrt((values[rank:] ** 2).sum()), rtol=1e-9)


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("axes", [1, 2])
def test_two_layers_of_full_rank_compute_what_one_does(make: Any, axes: int) -> None:
    torch.manual_seed(0)
    layer = make()
    part = decompose(layer.weight, axes)
    pair = factored(layer, *part.factors(len(part.values)), layer.bias)
    x = torch.randn(2, 4, 12, 13)
    with torch.no_grad():
        torch.testing.assert_close(pair(x), layer(x), rtol=1e-5, atol=1e-5)
    assert [p.dtype for p in pair.parameters()] == [torch.float32] * (2 + (layer.bias is not None))


def test_so_do_two_linear_layers() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(9, 5), torch.randn(2, 3, 9)
    pair = factored(layer, *decompose(layer.weight, 1).factors(5), layer.bias)
    with torch.no_grad():
        torch.testing.assert_close(pair(x), layer(x), rtol=1e-5, atol=1e-5)
    assert isinstance(pair.first, nn.Linear) and pair.first.weight.shape == (5, 9) and pair.first.bias is None


def test_with_inputs_the_answers_are_as_close_as_any_matrix_of_that_rank_can_make_them() -> None:
    """That is: as the principal components of the centred answers (Zhang et al., 2015)."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 8)) @ rng.standard_normal((8, 8)) + rng.standard_normal(8)
    weight, rank = rng.standard_normal((6, 8)), 3
    covariance, mean = np.cov(x.T, bias=True), x.mean(0)
    part = decompose(torch.tensor(weight), 1, torch.tensor(covariance), torch.tensor(mean))
    first, second = (factor.numpy() for factor in part.factors(rank))
    bias = part.bias(rank)
    assert bias is not None
    wanted, answers = x @ weight.T, x @ (second @ first).T + bias.numpy()
    least = (np.linalg.svd(wanted - wanted.mean(0), compute_uv=False)[rank:] ** 2).sum()
    np.testing.assert_allclose(((wanted - answers) ** 2).sum(), least, rtol=1e-4)
    np.testing.assert_allclose((part.values.numpy()[rank:] ** 2).sum() * len(x), least, rtol=1e-4)
    alike = weight - rebuilt(torch.tensor(weight)[:, :, None, None], 1, rank)[:, :, 0, 0]
    assert ((x - mean) @ alike.T).var() > 1.2 * (wanted - answers).var(), "the weight alone decides otherwise"


def test_inputs_without_variance_are_no_fault() -> None:
    part = decompose(torch.ones(3, 4), 1, torch.zeros(4, 4, dtype=torch.float64), torch.ones(4, dtype=torch.float64))
    assert all(torch.isfinite(factor).all() for factor in part.factors(2))


def test_steps_are_those_of_the_lower_convex_hull() -> None:
    """Found by comparing all ranks: no rank on the hull is dearer than a mixture of two others."""
    values = torch.tensor([5.0, 4.0, 4.0, 1.0, 0.5, 0.1])
    energy = values.numpy() ** 2
    points = {0: (100, 0.0)} | {
        r: (15 * r, -math.log(energy[:r].sum() / energy.sum())) for r in range(1, 7) if 15 * r < 100
    }

    def on_hull(rank: int) -> bool:
        cost, loss = points[rank]
        for (c1, l1), (c2, l2) in itertools.combinations(points.values(), 2):
            low, high = sorted([(c1, l1), (c2, l2)])
            if low[0] < cost < high[0]:
                share = (cost - low[0]) / (high[0] - low[0])
                if low[1] + share * (high[1] - low[1]) <= loss + 1e-12:
                    return False
        return True

    steps = steps_of(7, values, range(1, 7), 100, 15, hull=True)
    assert [step.rank for step in steps] == sorted((r for r in points if r and on_hull(r)), reverse=True)
    assert [step.price for step in steps] == sorted(step.price for step in steps)
    assert all(step.layer == 7 and step.gone == 1 - 15 * step.rank / 100 for step in steps)
    every = steps_of(7, values, range(1, 7), 100, 15, hull=False)
    assert [step.rank for step in every] == [6, 5, 4, 3, 2, 1]


def test_a_layer_of_zeros_has_steps_that_lose_nothing() -> None:
    assert [step.price for step in steps_of(0, torch.zeros(3), [1, 2], 9, 2, hull=False)] == [0, 0]
