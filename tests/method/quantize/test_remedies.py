"""Remedies are looked for where plain int8 changes the logits much, and there alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qexp.artifact import EngineSpec
from qexp.data.random import RandomData
from qexp.method.base import Compressed
from qexp.method.quantize import remedies, static
from qexp.method.quantize.remedies import GAIN_DB, Remedy, spread
from qexp.types import UserError
from tests import configured
from tests.tiers import more

pytestmark = pytest.mark.integration  # compresses whole networks


def mobile(channels: int = 16) -> nn.Sequential:
    """Depthwise layers between others."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, channels, 3), nn.ReLU6(), nn.Conv2d(channels, channels, 3, groups=channels), nn.ReLU6(),
        nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10),
    ).eval()  # fmt: skip


def badly_scaled() -> nn.Sequential:
    """The same function, with channels that differ by up to a thousand around the depthwise layer."""
    network = mobile()
    with torch.no_grad():
        for first, second, factors in ((0, 2, torch.logspace(-3, 0, 16)), (2, 4, torch.logspace(0, -3, 16))):
            network[first].weight.mul_(factors[:, None, None, None])
            network[first].bias.mul_(factors)
            network[second].weight.div_(factors[:, None, None, None] if second == 2 else factors[:, None, None])
    return network


class Outliers(nn.Module):
    """Attention whose norms make one channel a thousand times larger than the weights of the next layer need it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.norm, self.last = nn.Conv2d(3, 32, 4, stride=4), nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.head = nn.Linear(32, 96), nn.Linear(32, 10)
        with torch.no_grad():
            for norm, layer in ((self.norm, self.qkv), (self.last, self.head)):
                norm.weight[3] *= 1000
                layer.weight[:, 3] /= 1000

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        query, keys, values = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + torch.softmax(query @ keys.transpose(1, 2) / 32**0.5, -1) @ values
        return self.head(self.last(x).mean(1))


def compressed(network: nn.Module, data: RandomData, folder: Path, **options: object) -> tuple[Compressed, nn.Module]:
    folder.mkdir()
    method = configured.method("static", reduce_range=False, **options)
    found = method.apply(network, data, method.resolve(EngineSpec()), folder)
    return found, torch.export.load(folder / found.graph).module()


def signal_to_noise(network: nn.Module, graph: nn.Module, x: Tensor) -> float:
    """In decibels, over images that nothing was calibrated on."""
    with torch.no_grad():
        wanted = network(x).double()
        return float(10 * torch.log10(wanted.square().sum() / (graph(x) - wanted).square().sum()))


@pytest.mark.parametrize("make", [Outliers, *more(badly_scaled)])
def test_networks_that_collapse_are_mended(
    make: Callable[[], nn.Module], pretend_data: RandomData, tmp_path: Path
) -> None:
    network, others = make().eval(), 0.8 * pretend_data.calibration()[:].flip(3)
    plain, graph = compressed(network, pretend_data, tmp_path / "plain", remedy="none")
    before = signal_to_noise(network, graph, others)
    found, graph = compressed(network, pretend_data, tmp_path / "auto")
    assert plain.notes == {} and "smoothing" in found.notes["remedy"]
    assert before < 20 and signal_to_noise(network, graph, others) > before + 10
    assert [layer.weight for layer in found.layers] == [layer.weight for layer in plain.layers]


def test_healthy_networks_stay_bit_for_bit(pretend_data: RandomData, tmp_path: Path) -> None:
    (one, plain), (other, auto) = (
        compressed(mobile(), pretend_data, tmp_path / remedy, remedy=remedy) for remedy in ("none", "auto")
    )
    assert one == other and one.notes == {}
    states = plain.state_dict(), auto.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        ({Remedy(): 18.0, Remedy(False, True): 18.0 + GAIN_DB / 2}, "none helps: the logits keep 18.0 dB"),
        ({Remedy(): 18.0, Remedy(True, True): 22.26}, "smoothing and bias correction: 18.0 → 22.3 dB of the logits"),
    ],
)
def test_a_remedy_has_to_be_clearly_better(
    measured: dict[Remedy, float], said: str, pretend_data: RandomData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remedies, "tried", lambda *arguments: measured)
    found, _ = compressed(badly_scaled(), pretend_data, tmp_path / "auto")
    assert found.notes == {"remedy": f"{said} on calibration images"}


def test_who_chooses_a_remedy_gets_that_alone() -> None:
    def looks(**options: object) -> bool:
        return configured.method("static", **options).looks_for_remedy

    assert looks()
    assert not looks(remedy="none")
    assert not looks(equalisation=True) and not looks(bias_correction=True)
    assert not looks(bits=4) and not looks(bits="w8a32"), "who asks for that expects a loss"
    with pytest.raises(UserError, match="no remedy 'some'"):
        configured.method("static", remedy="some")


def test_images_are_taken_from_everywhere() -> None:
    images = torch.arange(10.0)[:, None]
    assert spread(images, 4)[:, 0].tolist() == [0, 3, 6, 9]
    assert torch.equal(spread(images, 20), images)


def test_nothing_is_tried_for_random_weights(
    monkeypatch: pytest.MonkeyPatch, pretend_data: RandomData, tmp_path: Path
) -> None:
    asked = []
    monkeypatch.setattr(static, "remedied", lambda method, plain, *others: (asked.append(method), (plain, {}))[1])
    method, network = configured.method("static"), mobile()
    for number, weights in enumerate(("random", "a digest")):
        folder = tmp_path / str(number)
        folder.mkdir()
        method.compress(network, pretend_data, method.resolve(EngineSpec()), folder, {"weights": weights})
        assert len(asked) == number
    assert method.remedy == "auto", "the method itself has not changed"
