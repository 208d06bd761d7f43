"""Sparse learning: the penalty has the gradient of its formula, and channels that it presses lose their norm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qexp.artifact import EngineSpec
from qexp.data.random import RandomData
from qexp.method.artifacts import make_artifact
from qexp.method.fine_tuning import FineTuningSession
from qexp.method.graph import count_macs
from qexp.method.prune.dependency_graph import Members, groups_of, members_of
from qexp.method.prune.sparse import PENALTIES, add_penalty, channel_norms, group_norm_factors
from qexp.types import UserError
from tests.method.training import SOURCE, pruning_channels


class Little(nn.Module):
    """Two convolutions of three channels that are added, and a flatten to 2 x 2 places for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.two, self.deep = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.Conv2d(3, 3, 3, padding=1, groups=3)
        self.pool, self.classifier = nn.AdaptiveAvgPool2d(2), nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.pool(self.norm(self.one(x)) + self.deep(self.two(x))).flatten(1))


def penalty_by_hand(network: Little, factors: torch.Tensor) -> torch.Tensor:
    """1/2 sum_k factors[k] I_k, written out for the only group."""
    total = torch.zeros((), dtype=torch.float64)
    for k in range(3):
        of_k = (network.one.weight[k], network.norm.weight[k], network.two.weight[k], network.deep.weight[k])
        total = total + factors[k] * sum(w.square().sum() for w in of_k) / 2
        total = total + factors[k] * network.classifier.weight[:, 4 * k : 4 * k + 4].square().sum() / 2
    return total


@pytest.fixture
def little(pretend_data: RandomData) -> tuple[Little, Members]:
    torch.manual_seed(0)
    network = Little().eval()
    nn.init.normal_(network.norm.weight)
    (group,) = members_of(network, pretend_data)
    return network.double(), group


def test_the_gradient_is_that_of_the_formula(little: tuple[Little, Members]) -> None:
    network, group = little
    factors = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)
    weights = dict(network.named_parameters())
    own = {name: torch.randn_like(weight) for name, weight in weights.items()}
    for name, weight in weights.items():
        weight.grad = own[name].clone()
    add_penalty(weights, group, factors)
    got = {name: weight.grad - own[name] for name, weight in weights.items()}  # type: ignore[operator]
    penalty = penalty_by_hand(network, factors)
    wanted = torch.autograd.grad(penalty, list(weights.values()), materialize_grads=True)
    for (name, value), expected in zip(got.items(), wanted, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12, msg=name)
    assert got["classifier.weight"].any() and got["deep.weight"].any() and not got["one.bias"].any()


def test_norms_are_sums_of_squares_of_all_that_goes_with_a_channel(little: tuple[Little, Members]) -> None:
    network, group = little
    ones = torch.eye(3, dtype=torch.float64)
    expected = [2 * penalty_by_hand(network, each).item() for each in ones]
    np.testing.assert_allclose(channel_norms(dict(network.named_parameters()), group).numpy(), expected, rtol=1e-12)


def test_factors_of_group_norm_are_those_of_depgraph() -> None:
    norms = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    lam, alpha = 0.01, 4.0
    expected = [lam * 2 ** (alpha * (3 - norm) / (3 - 1)) for norm in (3.0, 1.0, 2.0)]
    torch.testing.assert_close(group_norm_factors(norms, lam * 2**alpha, alpha).tolist(), expected)
    equal = group_norm_factors(torch.ones(4), 0.16, 4.0)
    torch.testing.assert_close(equal, torch.full((4,), 0.01))


def test_members_are_the_channels_that_go_together(pretend_data: RandomData, network: nn.Module) -> None:
    members = {group.layer: group for group in members_of(network, pretend_data)}
    groups = {group.layer: group for group in groups_of(network, pretend_data, "l2")}
    assert members.keys() == groups.keys()
    weights = dict(network.named_parameters())
    for layer, group in members.items():
        assert group.channels == groups[layer].channels
        norms = channel_norms(weights, group)  # the importance l2 is the mean over the same layers
        torch.testing.assert_close(norms / norms.mean(), groups[layer].scores, rtol=1e-4, atol=1e-5)


def test_what_a_grouped_convolution_reads_is_left_out(pretend_data: RandomData) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    ).eval()
    first = next(group for group in members_of(network, pretend_data) if group.layer == "0")
    assert [(part.parameter, part.axis) for part in first.parts if part.parameter == "1.weight"] in (
        [],
        [("1.weight", 0)],
    )


@pytest.mark.integration
@pytest.mark.parametrize("penalty", PENALTIES)
def test_channels_lose_their_norm_and_then_go(
    penalty: str, pretend_data: RandomData, network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[int, nn.Module]] = []
    train = FineTuningSession.train

    def remember(session: FineTuningSession, network: nn.Module, *more: Any) -> None:
        train(session, network, *more)
        trained.append((session.recipe.epochs, network))

    monkeypatch.setattr(FineTuningSession, "train", remember)
    sparse = {"epochs": 3, "penalty": penalty, "strength": 8.0}
    options: dict[str, Any] = {"recipe": {"epochs": 1, "distillation": 0.5}, "sparse": sparse}
    method = pruning_channels(**options)
    chosen = method.chosen(network, network, pretend_data, 2.0, tmp_path / "x")
    before = {name: weight.clone() for name, weight in network.named_parameters()}
    artifact = make_artifact(method, network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    assert all(torch.equal(weight, before[name]) for name, weight in network.named_parameters()), (
        "the given one is whole"
    )
    (epochs, sparsened), (after, _) = trained
    assert (epochs, after) == (3, 1) and artifact.macs <= count_macs(network, pretend_data) / 2
    weights = dict(sparsened.named_parameters())
    for group in members_of(network, pretend_data):
        left = channel_norms(weights, group) / channel_norms(before, group)
        pressed = chosen.get(group.layer, [])
        others = [channel for channel in range(group.channels) if channel not in pressed]
        if penalty == "group_norm":
            assert left.max() < 0.9, "all are pressed"
        elif pressed and others:
            assert left[pressed].max() < 0.1 < 0.5 < left[others].mean()


@pytest.mark.parametrize(
    ("sparse", "message"),
    [
        ({"epochs": -1}, r"method\.sparse\.epochs=-1 is out of range"),
        ({"epochs": 0.5}, r"method\.sparse\.epochs=0\.5 is out of range"),
        ({"penalty": "growning"}, "no penalty 'growning'.*did you mean 'growing'"),
        ({"strength": 0}, r"strength=0, alpha=4: a strength lies above 0"),
        ({"alpha": -1}, "alpha is at least 0"),
    ],
)
def test_bad_options_are_errors(sparse: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pruning_channels(sparse=sparse)
