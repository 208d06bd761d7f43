"""Checkpoints in the forms that people have them, all of one network."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from qexp.model.checkpoint import claimed_top1, load_checkpoint
from qexp.types import UserError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stem(x).mean((2, 3)))


def trained() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return Net().eval().state_dict()


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in trained().items()}


FORMS: dict[str, Any] = {
    "the weights alone": trained(),
    "model.": {"epoch": 3, "pytorch-lightning_version": "2.5.0", "state_dict": prefixed("model."), "optimizer": []},
    "net.": {"state_dict": prefixed("net.")},
    "two prefixes": {"state_dict": prefixed("module.backbone.")},
    "net": {"net": prefixed("module."), "acc": 93.1, "epoch": 4},
    "deeper": {"checkpoint": {"weights": trained()}},
    "an optimizer beside": {"optimizer": {"state": {0: {"step": torch.ones(1)}}}, "model": trained()},
    "arguments": {"state_dict": trained(), "args": argparse.Namespace(lr=0.1, path=Path("here"))},
    "NumPy's values": {"state_dict": trained(), "best_acc": np.float64(0.9), "history": np.arange(3.0)},
    "an epoch among them": {**trained(), "epoch": 3},
    "double precision": {name: tensor.double() for name, tensor in trained().items()},
}


def assert_loaded(network: nn.Module) -> None:
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, trained()[name])


@pytest.mark.parametrize("form", FORMS)
def test_it_is_loaded_and_there_is_nothing_to_say(form: str, tmp_path: Path) -> None:
    torch.save(FORMS[form], tmp_path / "epoch=9-step=100.ckpt")
    network = Net()
    assert load_checkpoint(network, tmp_path / "epoch=9-step=100.ckpt") == ""
    assert_loaded(network)


def test_torchscript_and_safetensors(tmp_path: Path) -> None:
    source = Net().eval()
    source.load_state_dict(trained())
    torch.jit.trace(source, torch.zeros(1, 1, 28, 28)).save(str(tmp_path / "script.pt"))
    save_file(prefixed("model."), tmp_path / "prefixed.safetensors")
    for name in ("script.pt", "prefixed.safetensors"):
        network = Net()
        load_checkpoint(network, tmp_path / name)
        assert_loaded(network)


class Wrapping(nn.Module):
    """A network around another one, whose checkpoint is of the inner one."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Net()


def test_a_prefix_that_is_missing_is_added(tmp_path: Path) -> None:
    torch.save(trained(), tmp_path / "inner.pt")
    network = Wrapping()
    assert load_checkpoint(network, tmp_path / "inner.pt") == ""
    assert_loaded(network.backbone)


def test_half_precision_is_loaded_as_it_is(tmp_path: Path) -> None:
    torch.save({name: tensor.half() for name, tensor in trained().items()}, tmp_path / "half.pt")
    network = Net()
    load_checkpoint(network, tmp_path / "half.pt")
    assert network.fc.weight.dtype == torch.float32 and torch.equal(network.fc.weight, trained()["fc.weight"].half())


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"criterion.weight": torch.ones(10)}, "left out criterion.weight"),
        ({"val_acc.correct": torch.tensor(3)}, "left out val_acc.correct"),
        ({"network.aux1.fc.weight": torch.ones(2, 2)}, "left out network.aux1.fc.weight"),
    ],
)
def test_what_the_network_does_not_have_is_left_out_and_said(
    more: dict[str, Tensor], told: str, tmp_path: Path
) -> None:
    torch.save({"state_dict": {**prefixed("network."), **more}}, tmp_path / "w.ckpt")
    network = Net()
    assert told in load_checkpoint(network, tmp_path / "w.ckpt")
    assert_loaded(network)


def test_more_of_a_part_that_it_has_is_another_network(tmp_path: Path) -> None:
    torch.save({**trained(), "stem.3.weight": torch.ones(8, 8)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"unexpected \(1\): stem.3.weight"):
        load_checkpoint(Net(), tmp_path / "w.pt")


def test_the_second_of_two_is_taken_where_it_is_asked_for(tmp_path: Path) -> None:
    zeros = {name: torch.zeros_like(tensor) for name, tensor in trained().items()}
    torch.save({"state_dict": zeros, "state_dict_ema": trained(), "arch": "x"}, tmp_path / "both.pth.tar")
    network = Net()
    told = load_checkpoint(network, tmp_path / "both.pth.tar")
    assert told.startswith("those of state_dict; checkpoint_key=state_dict_ema") and not network.fc.weight.any()
    load_checkpoint(network, tmp_path / "both.pth.tar", "state_dict_ema")
    assert_loaded(network)
    with pytest.raises(UserError, match=r"no weights under 'state_dict_em'.*state_dict_ema"):
        load_checkpoint(network, tmp_path / "both.pth.tar", "state_dict_em")


def test_a_pickled_module_needs_trust(tmp_path: Path) -> None:
    source = Net()
    source.load_state_dict(trained())
    torch.save(source, tmp_path / "whole.pth")
    network = Net()
    with pytest.raises(UserError, match=r"Python objects, which can run code.*trust_checkpoint=true"):
        load_checkpoint(network, tmp_path / "whole.pth")
    load_checkpoint(network, tmp_path / "whole.pth", trusted=True)
    assert_loaded(network)


def test_a_list_is_refused(tmp_path: Path) -> None:
    torch.save([*trained().values()], tmp_path / "list.pth")
    with pytest.raises(UserError, match=r"not a state dict.*Save one: torch.save"):
        load_checkpoint(Net(), tmp_path / "list.pth")


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        ({"best_prec1": 93.5}, ("best_prec1", 0.935)),
        ({"acc": np.float64(0.81), "epoch": 90, "acc5": 0.99}, ("acc", 0.81)),
        ({"val_acc": torch.tensor(71.25), "Accuracy": 0.7}, ("val_acc", 0.7125)),
        ({"acc": 0.0, "best": 0.9, "loss": 0.3, "top1": True, "precision": "half"}, None),
    ],
)
def test_the_accuracy_that_a_file_claims_is_found(beside: dict[str, Any], expected: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": trained(), **beside}, tmp_path / "w.pth")
    found = claimed_top1(tmp_path / "w.pth")
    assert found == (expected and (expected[0], pytest.approx(expected[1])))
