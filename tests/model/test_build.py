"""Errors of building a network: one message that says what is wrong and what to do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from qexp.model.base import build_network, check_logits
from qexp.types import DataSpec, Preprocessing, UserError

DATA = DataSpec("toy", ("a", "b", "c"), Preprocessing(3, (32, 32), (0.5,) * 3, (0.2,) * 3), "0")


TORCHVISION = {"num_classes": 3, "in_channels": 3, "pretrained": False}


def build(**model: Any) -> nn.Module:
    return build_network(OmegaConf.create({"id": "net", **model}))


def message(**model: Any) -> str:
    with pytest.raises(UserError) as caught:
        build(**model)
    return str(caught.value)


def test_no_model() -> None:
    assert "Give model=NAME" in message(_target_="???", num_classes=3)


def test_missing_name() -> None:
    assert "model.name=VALUE" in message(_target_="qexp.model.torchvision.build", name="???", num_classes=3)


def test_unknown_torchvision_name() -> None:
    text = message(_target_="qexp.model.torchvision.build", name="squeezenet11", **TORCHVISION)
    assert "no classifier 'squeezenet11': did you mean 'squeezenet1_1'" in text


def test_torchvision_takes_no_grey_images() -> None:
    given = {**TORCHVISION, "in_channels": 1}
    assert "data.channels=3" in message(_target_="qexp.model.torchvision.build", name="resnet18", **given)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("qexp.model.resnet.ResNett", "qexp.model.resnet has no 'ResNett': did you mean 'ResNet'"),
        ("qexp.model.resnets.ResNet", "there is no module 'qexp.model.resnets' in qexp.model: did you mean 'resnet'"),
        ("surely_absent.Net", "there is no module 'surely_absent' in the current folder"),
        ("Net", "no dotted name"),
        ("", "no dotted name"),
    ],
)
def test_unimportable_target(target: str, expected: str) -> None:
    assert expected in message(_target_=target, num_classes=3)


def test_wrong_and_lacking_arguments() -> None:
    text = message(_target_="qexp.model.vgg.VGG", depht=11, num_classes=3)
    assert "takes no argument 'depht' (leave it out with ~model.depht): did you mean 'depth'" in text
    assert "needs the arguments depth, num_classes" in message(_target_="qexp.model.vgg.VGG")


def test_values_that_a_network_refuses() -> None:
    vgg = {"_target_": "qexp.model.vgg.VGG", "num_classes": 3, "in_channels": 3, "dropout": 0.5}
    assert "no VGG of depth 12" in message(**vgg, depth=12, image_size=32)
    assert "at least 32x32" in message(**vgg, depth=11, image_size=16)
    lenet = {"_target_": "qexp.model.lenet.LeNet5", "num_classes": 3, "in_channels": 3}
    assert "at least 32x32" in message(**lenet, image_size=28)
    assert "Cannot build the model net: " in message(_target_="torch.nn.Linear", in_features=-1, out_features="x")


def test_not_a_module() -> None:
    assert "gave a dict, not a torch.nn.Module" in message(_target_="builtins.dict")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder that, as with `python elsewhere/train.py`, is not on Python's path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    return tmp_path


def test_network_in_the_current_folder(here: Path) -> None:
    (here / "my_own_net.py").write_text(
        "from torch import nn\n\ndef net(widths):\n    assert type(widths) is list\n"
        "    return nn.Sequential(nn.Flatten(), nn.LazyLinear(widths[0]))\n"
    )
    network = build(_target_="my_own_net.net", widths=[3])
    check_logits(network, "net", DATA)
    assert "did you mean 'my_own_net'" in message(_target_="my_own_met.net")


def test_broken_module_in_the_current_folder(here: Path) -> None:
    (here / "my_broken_net.py").write_text("import surely_absent\n")
    text = message(_target_="my_broken_net.Net")
    assert "importing my_broken_net failed: ModuleNotFoundError: No module named 'surely_absent'" in text


class WithArgument(nn.Module):
    def __init__(self, result: Any):
        super().__init__()
        self.result = result

    def forward(self, x: torch.Tensor) -> Any:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (torch.zeros(2, 10), r"gives \(2, 10\) for 2 images of 3x32x32, but toy has 3 classes"),
        ((torch.zeros(2, 3),), "gives tuple for 2 images"),
        (RuntimeError("Output size is too small"), "cannot take images of 3x32x32 .*Output size is too small"),
    ],
)
def test_check_logits(result: Any, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        check_logits(WithArgument(result), "net", DATA)


def test_check_logits_leaves_the_network_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network[1].eval()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    check_logits(network, "net", DATA)
    assert [module.training for module in network] == [True, False, True, True]
    assert network.training and all(torch.equal(before[k], v) for k, v in network.state_dict().items())
