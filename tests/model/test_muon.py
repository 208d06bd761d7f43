"""Muon and the triangular schedule against their formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qexp.model.muon import Muon, orthogonalised
from qexp.model.schedules import triangular

OPTIONS = {
    "lr": 0.1, "momentum": 0.6, "steps": 3, "matrix_lr": 0.5, "vector_lr": 0.3, "sgd_momentum": 0.85,
    "weight_decay": 0.01,
}  # fmt: skip


def polynomial(matrix: np.ndarray, steps: int) -> np.ndarray:
    """What Newton-Schulz iterations make of a matrix, by its singular values."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.sqrt((values**2).sum())
    for _ in range(steps):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left * values @ right


@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (6, 6)])
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_iterations_change_the_singular_values_alone(shape: tuple[int, int], steps: int) -> None:
    matrix = np.random.default_rng(0).normal(size=shape)
    found = orthogonalised(torch.from_numpy(matrix), steps)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), polynomial(matrix, steps), atol=1e-5)


def test_five_steps_bring_all_singular_values_near_one() -> None:
    matrix = torch.from_numpy(np.random.default_rng(1).normal(size=(16, 40)))
    values = torch.linalg.svdvals(orthogonalised(matrix, 5))
    assert float(torch.linalg.svdvals(matrix).min()) > 1.5 and ((values > 0.65) & (values < 1.25)).all()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)).double()


@pytest.mark.parametrize("channels_last", [False, True])
def test_steps_are_those_of_the_formulas(channels_last: bool) -> None:
    trained = network()
    if channels_last:
        trained = trained.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    trained[1].weight.requires_grad_(False)  # type: ignore[index]
    optimizer = Muon(trained.parameters(), **OPTIONS)
    names = [name for name, p in trained.named_parameters() if p.requires_grad]
    expected = {name: trained.get_parameter(name).detach().clone().numpy() for name in names}
    buffers = {name: np.zeros_like(value) for name, value in expected.items()}
    for _ in range(3):
        trained(torch.randn(8, 3, 3, 3, dtype=torch.float64)).pow(2).sum().backward()
        for name in names:
            gradient, value = trained.get_parameter(name).grad, expected[name]
            assert gradient is not None
            expected[name] = after(value, gradient.numpy(), buffers[name])
        optimizer.step()
        optimizer.zero_grad()
        for name in names:
            # The iterations are in bfloat16, which has 8 bits.
            loose = 0.005 if name == "0.weight" else 1e-12
            np.testing.assert_allclose(trained.get_parameter(name).detach().numpy(), expected[name], atol=loose)
            expected[name] = trained.get_parameter(name).detach().clone().numpy()
    assert torch.equal(trained[1].weight, torch.ones(4, dtype=torch.float64))  # type: ignore[index]


def after(value: np.ndarray, gradient: np.ndarray, buffer: np.ndarray) -> np.ndarray:
    """A parameter after one step, as the papers write it; its buffer is changed in place."""
    if value.ndim == 4:
        buffer[:] = 0.6 * buffer + gradient
        direction = polynomial((gradient + 0.6 * buffer).reshape(len(value), -1), 3).reshape(value.shape)
        return value * np.sqrt(len(value)) / np.linalg.norm(value) - 0.1 * direction
    gradient = gradient + 0.01 * value if value.ndim == 2 else gradient
    buffer[:] = 0.85 * buffer + gradient
    return value - (0.5 if value.ndim == 2 else 0.3) * (gradient + 0.85 * buffer)


def test_all_but_filters_is_torchs_sgd() -> None:
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    groups = [{"params": theirs.weight, "lr": 0.5, "weight_decay": 0.01}, {"params": theirs.bias, "lr": 0.3}]
    optimizers = Muon(ours.parameters(), **OPTIONS), torch.optim.SGD(groups, momentum=0.85, nesterov=True)
    for _ in range(4):
        x = torch.randn(5, 3)
        for layer, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            layer(x).pow(2).mean().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


@pytest.mark.parametrize("name", ["lr", "matrix_lr", "vector_lr"])
def test_a_learning_rate_below_zero_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        Muon(network().parameters(), **{**OPTIONS, name: -1})


@pytest.mark.parametrize(("first", "rise", "last"), [(0.2, 0.25, 0.0), (1.0, 0.0, 0.1), (0.1, 1.0, 0.5)])
def test_rates_are_interpolated_between_three_points(first: float, rise: float, last: float) -> None:
    parameters: list[Tensor] = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    groups = [{"params": [p], "lr": rate} for p, rate in zip(parameters, (2.0, 0.5), strict=True)]
    optimizer = torch.optim.SGD(groups)  # type: ignore[arg-type]
    schedule, found = triangular(optimizer, 40, first, rise, last), []
    for _ in range(40):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    points = ([0, 40 * rise, 40], [first, 1, last]) if rise else ([0, 40], [1, last])
    shares = np.interp(np.arange(40), *points)
    np.testing.assert_allclose(found, shares[:, None] * [2.0, 0.5], rtol=1e-12)
