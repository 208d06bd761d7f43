"""A network of a program is copied, and known by what it computes: no two different ones share a result."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from qexp.api.nodes import Network, call_text, modules_of, network_of
from qexp.data.base import ImageData
from qexp.jobs.given import Given
from qexp.model.given import taken
from qexp.types import UserError
from tests import configured

MODEL = OmegaConf.create({"id": "Net", "num_classes": 10, "output": None, "pretrained": True})


class Net(nn.Module):
    """A network whose settings are in its weights, its buffers, its attributes, and its mode."""

    def __init__(self, scale: float = 1.0, noise: float = 0.1, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)
        self.noise, self.scale = noise, scale
        self.register_buffer("shift", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))

    def head(self, x: Tensor) -> Tensor:
        if self.training:
            x = x + self.noise * torch.randn_like(x)
        return self.linear(x) * self.scale + self.shift


class Functional(Net):
    """The same graph by functions instead of modules: no method that looks for modules finds a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.ParameterDict({"weight": self.conv.weight, "bias": self.conv.bias})  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.conv2d(x, self.conv.weight, self.conv.bias).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return configured.pretend_data(tmp_path_factory.mktemp("cache"))


def identity(data: ImageData, network: nn.Module, training: bool = False) -> str:
    network, given = taken(network.eval()), Given({"Net": network})
    found = (given.training_identity if training else given.identity)(MODEL, network, data)
    return next(iter(found.values()))


def shifted() -> Net:
    network = Net()
    network.shift += 1
    return network


def test_the_same_network_is_known_again_and_no_other(data: ImageData) -> None:
    assert identity(data, Net()) == identity(data, Net())
    others = [Net(), Net(scale=2.0), Net(seed=1), shifted(), Functional()]
    assert len({identity(data, network) for network in others}) == len(others)


def test_what_happens_in_training_counts_for_methods_that_train(data: ImageData) -> None:
    assert identity(data, Net()) == identity(data, Net(noise=0.5))
    assert identity(data, Net(), training=True) == identity(data, Net(), training=True)
    assert identity(data, Net(), training=True) != identity(data, Net(noise=0.5), training=True)


def test_a_copy_is_taken_and_wrappers_come_off() -> None:
    network = Net().eval()
    copied = taken(nn.DataParallel(network).eval())
    network.linear.weight.data.zero_()
    assert type(copied) is Net and copied.linear.weight.abs().sum() > 0
    compiled = nn.Module().eval()
    compiled._orig_mod = network  # as torch.compile keeps it
    assert type(taken(compiled)) is Net


class Locked(Net):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Net(), r"Net is in training mode \(the network itself\).* Call network.eval\(\) first"),
        (nn.Sequential(nn.Dropout()).eval().append(nn.Dropout()), r"in training mode \(1\)"),
        (Net().eval().half(), r"conv.weight is torch.float16. Give network.float\(\); method='half'"),
        (torch.jit.script(Net().eval()), "is TorchScript.* Give the nn.Module that it was made from"),
        (Locked().eval(), "cannot be copied: TypeError: cannot pickle"),
        (Net.forward, "The network is a function. Give a torch.nn.Module"),
        ("resnet21", "There is no model 'resnet21'. did you mean .*'resnet20'"),
    ],
)
def test_what_cannot_be_compressed_is_refused(network: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        network_of(network)


def test_two_networks_have_two_names() -> None:
    one, same, other = (network_of(Net(seed=seed).eval()) for seed in (0, 0, 1))
    assert modules_of([one, same]) == {"Net": one.module}
    with pytest.raises(UserError, match="Two different networks are called Net. Name them"):
        modules_of([one, other])
    assert [*modules_of([one, network_of(Net(seed=1).eval(), "other"), Network("resnet8", {})])] == ["Net", "other"]


def test_records_say_which_call_it_was() -> None:
    text = call_text("compare", {"networks": [Net()], "data": "pictures", "engines": "auto"})
    assert text == "qexp.compare([<Net>], 'pictures', engines='auto')"
