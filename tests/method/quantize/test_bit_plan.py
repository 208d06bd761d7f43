"""The integer program that chooses bits per layer, against all assignments there are."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from qexp.method.quantize.bit_plan import allocate

ENDS = ("stem.0", "classifier")


def options_of_random_layers(seed: int, layers: int, options: int) -> tuple[np.ndarray, np.ndarray]:
    """Return losses[L,O] and costs[L,O] of a million weights.

    Losses mostly fall with the bits, and differ by orders of magnitude between layers.
    """
    generator = np.random.default_rng(seed)
    bits = np.sort(generator.choice(np.arange(2, 9), options, replace=False))
    losses = 10 ** generator.uniform(-3, 1, (layers, 1)) * 4.0**-bits * generator.uniform(0.2, 5, (layers, options))
    return losses, generator.integers(1, 100_000, (layers, 1)) * 9 * bits


@pytest.mark.parametrize("seed", range(12))
def test_the_integer_program_finds_the_best_of_all_assignments(seed: int) -> None:
    losses, costs = options_of_random_layers(seed, 5, 4)
    limit = int(costs[:, 0].sum() + np.random.default_rng(seed).uniform(0, 1) * (costs[:, -1] - costs[:, 0]).sum())
    rows = np.arange(5)
    sums = [losses[rows, choice].sum() for choice in product(range(4), repeat=5) if costs[rows, choice].sum() <= limit]
    chosen = allocate(losses.tolist(), costs.tolist(), limit)
    assert costs[rows, chosen].sum() <= limit
    assert losses[rows, chosen].sum() == pytest.approx(min(sums), rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_no_change_of_one_or_two_layers_within_the_budget_is_better(seed: int) -> None:
    losses, costs = options_of_random_layers(seed, 40, 5)
    limit, rows = int(costs[:, 2].sum()), np.arange(40)
    chosen = np.array(allocate(losses.tolist(), costs.tolist(), limit))
    cost, loss = costs[rows, chosen].sum(), losses[rows, chosen].sum()
    assert cost <= limit
    more, gain = costs - costs[rows, chosen][:, None], losses - losses[rows, chosen][:, None]
    assert not ((cost + more <= limit) & (gain < -1e-9 * loss)).any()
    others = rows[:, None, None, None] != rows[None, None, :, None]
    pairs_cost, pairs_gain = more[:, :, None, None] + more, gain[:, :, None, None] + gain
    assert not ((cost + pairs_cost <= limit) & (pairs_gain < -1e-9 * loss) & others).any()


def test_layers_that_differ_in_their_number_of_options() -> None:
    assert allocate([[0.5], [0.9, 0.1], [0.0, 0.0, 0.0]], [[80], [20, 40], [2, 3, 4]], 122) == [0, 1, 0]
    with pytest.raises(ValueError, match="101 or less"):
        allocate([[0.5], [0.9, 0.1], [0.0, 0.0, 0.0]], [[80], [20, 40], [2, 3, 4]], 101)
