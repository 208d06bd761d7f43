"""Networks as artifacts: what was written is what another method goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from qexp.artifact import EngineSpec
from qexp.data.random import RandomData
from qexp.method.artifacts import make_artifact
from qexp.method.prune.base import WEIGHTS_FILE, NetworkMethod, restore, save_weights
from qexp.types import UserError
from tests import configured
from tests.method.training import SOURCE, pruning


class Narrow(nn.Module):
    """Every kind of module that keeps numbers of channels beside its weights."""

    def __init__(self, width: int = 8, tied: bool = False):
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.PReLU(width),
            nn.Conv2d(width, width, 3, groups=width, padding=1),
            nn.GroupNorm(2, width), nn.Conv2d(width, 2 * width, 1, groups=2), nn.Conv2d(2 * width, width, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.LayerNorm(width), nn.Linear(width, 10),
        )  # fmt: skip
        if tied:
            self.other = self.layers[-1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Given(NetworkMethod):
    """Gives a network that it was told."""

    name = "given"
    indifferent = (*NetworkMethod.indifferent, "result")

    def __init__(self, result: nn.Module):
        super().__init__(pruning().recipe, coded=False)
        self.result = result.eval()

    def transform(self, network: nn.Module, data: Any, folder: Path) -> nn.Module:
        (folder / "notes.csv").write_text("for people\n")
        return self.result


def test_a_network_of_other_shapes_comes_back_bit_for_bit(pretend_data: RandomData, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, narrow = Narrow(8).eval(), Narrow(6).eval()
    save_weights(narrow, tmp_path / "x.safetensors")
    restored, x = restore(network, tmp_path / "x.safetensors"), pretend_data.calibration()[:]
    with torch.no_grad():
        assert torch.equal(restored(x), narrow(x)) and not restored.training
    assert repr(restored) == repr(narrow), "modules say the shapes that they have"
    assert network.layers[0].out_channels == 8, "the given one is as it was"
    for name, tensor in narrow.state_dict().items():
        assert torch.equal(restored.state_dict()[name], tensor)
    restored.train()(x).sum().backward()
    assert all(p.grad is not None for p in restored.parameters()), "it can be trained"


@pytest.mark.integration
def test_an_artifact_says_what_is_left_and_is_compared_with_the_whole(pretend_data: RandomData, tmp_path: Path) -> None:
    network, narrow = Narrow(8), Narrow(6)
    artifact = make_artifact(Given(narrow), network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    plain = make_artifact(configured.method("none"), network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    assert artifact.parameters == sum(p.numel() for p in narrow.parameters()) == artifact.packed_bytes / 4
    side = 16 * 16
    assert artifact.macs == side * (3 * 6 * 9 + 6 * 9 + 6 * 12 // 2 + 12 * 6) + 6 * 10
    assert (
        sum(layer.parameters for layer in artifact.layers) == artifact.parameters - 2 * 6 - 6 - 2 * 6 - 2 * 6
    )  # norms and PReLU
    assert artifact.reference == plain.folder.name
    assert {"model.pt2", "layers.csv", WEIGHTS_FILE, "notes.csv"} == set(artifact.files)
    x = pretend_data.calibration()[:]
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(artifact.folder / artifact.graph).module()(x), narrow(x))
    assert torch.equal(load_file(artifact.folder / WEIGHTS_FILE)["layers.0.weight"], narrow.layers[0].weight)


def test_tied_weights_are_written_twice_and_come_back(pretend_data: RandomData, tmp_path: Path) -> None:
    network, narrow = Narrow(8, tied=True).eval(), Narrow(6, tied=True).eval()
    save_weights(narrow, tmp_path / "x.safetensors")
    x = pretend_data.calibration()[:]
    with torch.no_grad():
        assert torch.equal(restore(network, tmp_path / "x.safetensors")(x), narrow(x))


def test_a_network_that_is_more_than_its_weights_is_refused(pretend_data: RandomData, tmp_path: Path) -> None:
    changed = Narrow(8)
    changed.load_state_dict((network := Narrow(8)).state_dict())
    changed.layers[2] = nn.PReLU(8)
    changed.layers[0].stride = (2, 2)  # what weights do not tell
    with pytest.raises(UserError, match="Narrow computes something else"):
        make_artifact(Given(changed), network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    assert not list(tmp_path.glob("small*")) and not list(tmp_path.glob(".small*-*-*.pt2"))


def test_weights_of_another_network_are_refused(network: nn.Module, tmp_path: Path) -> None:
    save_weights(Narrow(8), tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="missing"):
        restore(network, tmp_path / "x.safetensors")
