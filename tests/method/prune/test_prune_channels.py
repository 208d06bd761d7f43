"""What structured pruning leaves computes what the masked network would.

It does so in as many operations as can be counted by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from qexp.artifact import Artifact, EngineSpec
from qexp.data.random import RandomData
from qexp.method.artifacts import make_artifact
from qexp.method.fine_tuning import FineTuningModule, FineTuningSession
from qexp.method.graph import count_macs
from qexp.method.prune.base import WEIGHTS_FILE, restore
from qexp.method.prune.channels import removed
from qexp.method.prune.dependency_graph import IMPORTANCES, groups_of, without
from qexp.model.base import build_network
from qexp.places import CONF
from qexp.types import UserError
from tests import configured
from tests.method.pruning import distinct, masked
from tests.method.training import SOURCE, pruning_channels
from tests.tiers import more


def data_of(image_size: int, tmp_path: Path, channels: int = 3) -> RandomData:
    options: dict[str, Any] = {"cache_dir": str(tmp_path), "calibration_images": 16}
    data = configured.data(
        "random", images=32, num_classes=10, name="random", image_size=image_size, channels=channels, **options
    )
    data.open()
    return data


def conv_macs(conv: nn.Conv2d, side: int) -> int:
    """height x width of the result x output channels x input channels of a group x kernel area."""
    return side * side * conv.weight.shape[0] * conv.weight.shape[1] * conv.kernel_size[0] ** 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: configured.network("resnet8", blocks=[1, 2], widths=[8, 16]),
        lambda: configured.network("resnet8", blocks=[1, 1], widths=[4, 8], bottleneck=True),
    ],
)
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_pruned_network_computes_what_the_masked_one_does(
    make: Any, scope: str, pretend_data: RandomData, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = make().eval()
    exact = distinct(network).float()
    pruned = pruning_channels(scope=scope).pruned(exact, exact, pretend_data, 2.0, tmp_path / "x").double()
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(pruned(x), masked(exact.double(), pruned)(x), rtol=1e-9, atol=1e-9)
        assert not torch.allclose(pruned(x), exact(x), rtol=0.01), "something was pruned"


@pytest.mark.thorough
@pytest.mark.integration
@pytest.mark.parametrize(
    "make",
    [lambda: configured.network("vgg11"), lambda: configured.network("mobilenet_v2")],
    ids=["vgg11", "mobilenet_v2"],
)
def test_so_do_flattened_and_depthwise_channels(make: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, data = distinct(make()).float(), data_of(32, tmp_path)
    chosen = {group.layer: list(range(0, group.channels, 3)) for group in groups_of(network, data, "l1")}
    pruned = without(network, data, chosen).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(pruned(x), masked(network.double(), pruned)(x), rtol=1e-8, atol=1e-8)


@pytest.mark.integration
def test_macs_of_a_pruned_vgg_are_those_counted_by_hand(tmp_path: Path) -> None:
    network, data = configured.network("vgg11").eval(), data_of(32, tmp_path)
    sides = [
        32,
        16,
        8,
        8,
        4,
        4,
        2,
        2,
    ]  # of the image at each convolution, halved after the first, second, fourth, sixth and eighth

    def by_hand(vgg: nn.Module) -> int:
        convs = [m for m in vgg.modules() if isinstance(m, nn.Conv2d)]
        linears = [m for m in vgg.modules() if isinstance(m, nn.Linear)]
        return sum(map(conv_macs, convs, sides)) + sum(m.weight.numel() for m in linears)

    assert by_hand(network) == count_macs(network, data) == 171_679_744
    pruned = pruning_channels(round_to=16).pruned(network, network, data, 2.0, tmp_path / "x")
    assert by_hand(pruned) == count_macs(pruned, data)
    assert 2.0 <= by_hand(network) / by_hand(pruned) < 2.1


@pytest.mark.integration
def test_macs_of_a_pruned_resnet_are_those_counted_by_hand(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path
) -> None:
    sides = {"stem.0": 16, "blocks.0.body.0": 16, "blocks.0.body.3": 16}
    sides |= {"blocks.1.body.0": 8, "blocks.1.body.3": 8, "blocks.1.shortcut.0": 8}

    def by_hand(resnet: nn.Module) -> int:
        classifier = resnet.get_submodule("classifier").weight
        return sum(conv_macs(resnet.get_submodule(name), side) for name, side in sides.items()) + classifier.numel()  # type: ignore

    artifact = make_artifact(pruning_channels(), network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    pruned = restore(network, artifact.folder / WEIGHTS_FILE)
    assert by_hand(pruned) == artifact.macs
    assert artifact.parameters == sum(p.numel() for p in pruned.parameters()) == artifact.packed_bytes // 4
    assert 2.0 <= by_hand(network) / by_hand(pruned) < 2.6
    assert pruned.classifier.out_features == 10, "logits stay"
    widths = [[m.weight.shape[0] for m in each.modules() if isinstance(m, nn.Conv2d)] for each in (network, pruned)]
    assert all(left % min(2, before // 8) == 0 for before, left in zip(*widths, strict=True)), (
        "multiples of 2, or of an eighth"
    )


def test_the_least_important_channels_go(tmp_path: Path) -> None:
    """Of one convolution with known norms, and a linear layer after it: squares of both, the mean of the two layers."""
    network = nn.Sequential(
        nn.Conv2d(1, 4, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2, bias=False)
    )
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([1.0, 4.0, 3.0, 2.0]).reshape(4, 1, 1, 1))
        network[4].weight.copy_(torch.tensor([[5.0, 1.0, 1.0, 2.0], [0.0, 0.0, 1.0, -1.0]]))
    data = data_of(8, tmp_path, channels=1)
    l2, l1 = (groups_of(network, data, importance)[0] for importance in ("l2", "l1"))
    for group, both in ((l2, [1 + 25, 16 + 1, 9 + 2, 4 + 5]), (l1, [1 + 5, 4 + 1, 3 + 2, 2 + 3])):
        expected = np.array(both) / np.mean(both)
        np.testing.assert_allclose(group.scores.numpy(), expected, rtol=1e-6)
    assert removed([l2], [(0, 1), (0, 1)]) == {"0": [2, 3]}


def test_taylor_is_gradient_times_weight_over_batches(pretend_data: RandomData) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 10)
    ).eval()
    (group,) = groups_of(network, pretend_data, "taylor")
    x, labels = pretend_data.calibration()[:], pretend_data.calibration_labels()  # one batch of 32
    scale = torch.ones(5, requires_grad=True)
    loss = nn.functional.cross_entropy(network[4]((network[0](x).relu().mean((2, 3))) * scale), labels)
    (by_scale,) = torch.autograd.grad(
        loss, scale
    )  # of a factor on the channel: the sum of gradient times weight, of what reads it
    features = (
        nn.functional.conv2d(x, network[0].weight * scale[:, None, None, None], network[0].bias).relu().mean((2, 3))
    )
    (by_filter,) = torch.autograd.grad(nn.functional.cross_entropy(network[4](features), labels), scale)
    expected = (by_scale.abs() + by_filter.abs()) / 2
    torch.testing.assert_close(group.scores, expected / expected.mean(), rtol=1e-4, atol=1e-5)


def test_grouped_convolutions_lose_the_same_channels_of_each_group(tmp_path: Path) -> None:
    data = data_of(8, tmp_path)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 10),
    ).eval()
    pruned = pruning_channels().pruned(network, network, data, 1.5, tmp_path / "x")
    first, grouped = pruned[0], pruned[2]  # type: ignore[index]
    assert grouped.groups == 2 and first.out_channels == 2 * grouped.weight.shape[1] and grouped.out_channels % 2 == 0
    with torch.no_grad():
        assert pruned(torch.zeros(2, 3, 8, 8)).shape == (2, 10)


@pytest.mark.integration
def test_steps_reach_the_ratio_with_fine_tuning_between(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[int] = []
    method = pruning_channels({"epochs": 2}, steps=2, ratio=3)
    monkeypatch.setattr(FineTuningSession, "train", lambda session, *_: epochs.append(session.recipe.epochs))
    artifact = make_artifact(method, network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    assert epochs == [1, 2] and count_macs(network, pretend_data) / artifact.macs >= 3
    assert not list(tmp_path.glob(".training-*"))


class PretendTimer:
    """Says that a network is faster by half of what it has fewer parameters."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    @property
    def options(self) -> dict[str, Any]:
        return {"engine": "pretend"}

    def speedup(self, candidate: Artifact, reference: Artifact) -> float:
        assert (candidate.folder / candidate.graph).exists() and (reference.folder / reference.graph).exists()
        self.asked.append(1 + (reference.parameters / candidate.parameters - 1) / 2)
        return self.asked[-1]


@pytest.mark.thorough
@pytest.mark.integration
def test_latency_is_searched_until_the_timer_says_so(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path
) -> None:
    method = pruning_channels(target="latency", ratio=1.5, timer=PretendTimer())
    artifact = make_artifact(method, network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    asked = method.timer.asked  # type: ignore[union-attr]
    reached = 1 + (sum(p.numel() for p in network.parameters()) / artifact.parameters - 1) / 2
    assert reached == min(answer for answer in asked if answer >= 1.5), "the least that is pruned"
    assert artifact.label == "prune_channels 1.5x latency" and method.options["timer"]["engine"] == "pretend"
    assert not list(tmp_path.glob(".timed-*"))


@pytest.mark.thorough
@pytest.mark.integration
def test_a_killed_fine_tuning_goes_on(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"recipe": {"epochs": 2, "distillation": 0.5}, "steps": 2}
    undisturbed = make_artifact(
        pruning_channels(**options), network, pretend_data, EngineSpec(), SOURCE, tmp_path / "undisturbed"
    )
    begin, epochs = FineTuningModule.on_train_epoch_start, []

    def killed(self: FineTuningModule) -> None:
        epochs.append(self.current_epoch)
        if len(epochs) == 3:  # the second of the last step
            raise KeyboardInterrupt
        begin(self)

    monkeypatch.setattr(FineTuningModule, "on_train_epoch_start", killed)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        make_artifact(pruning_channels(**options), network, pretend_data, EngineSpec(), SOURCE, tmp_path / "killed")
    resumed = make_artifact(
        pruning_channels(**options), network, pretend_data, EngineSpec(), SOURCE, tmp_path / "killed"
    )
    assert epochs == [0, 0, 1, 1], "neither the first step nor an epoch of the last is trained again"
    x = pretend_data.calibration()[:]
    answers = [torch.export.load(a.folder / a.graph).module()(x) for a in (undisturbed, resumed)]
    torch.testing.assert_close(*answers)
    assert not list((tmp_path / "killed").glob(".training-*"))


FAMILIES = [
    "lenet5",
    "resnet8",
    *more("torchvision", "vgg11", "resnet50", "mobilenet_v2"),
]


@pytest.mark.integration
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_pruned_exported_and_run(name: str, tmp_path: Path) -> None:
    channels = 1 if name == "lenet5" else 3
    data = data_of(32, tmp_path, channels)
    more = ["model.name=squeezenet1_1"] if name == "torchvision" else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(
            "compress", [f"model={name}", *more, "data=random", f"data.channels={channels}", "data.image_size=32"]
        )
    config.data.num_classes = 10
    if name == "resnet50":
        config.model.blocks = [1, 1, 1, 1]  # a bottleneck of each width is enough
    torch.manual_seed(0)
    network = build_network(config.model).eval()
    method = pruning_channels(
        round_to=128 if name in ("resnet50", "vgg11", "mobilenet_v2") else 8
    )  # fewer candidates of large ones
    artifact = make_artifact(method, network, data, EngineSpec(), SOURCE, tmp_path)
    assert artifact.macs <= count_macs(network, data) / 2
    x = data.calibration()[:4].numpy()
    with torch.no_grad():
        expected = restore(network, artifact.folder / WEIGHTS_FILE)(torch.from_numpy(x)).numpy()
    for engine in (configured.engine("eager"), configured.engine("onnxruntime")):
        lowered = engine.lower(artifact, 4, 1)
        answer = engine.open(lowered.folder / engine.file_name(4, 1), 1)(np.ascontiguousarray(x))
        np.testing.assert_allclose(answer, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "mac"}, "did you mean 'macs'"),
        ({"importance": "l3"}, "no importance 'l3'"),
        ({"scope": "local"}, "no scope 'local'"),
        ({"ratio": 1}, "ratio=1 leaves nothing"),
        ({"least_share": 1}, "least_share=1"),
        ({"steps": 0}, "steps=0"),
        ({"round_to": 0.5}, "round_to=0.5"),
        ({"target": "latency", "timer": None}, "needs a timer"),
        ({"recipe": {"distillation": 2}}, "distillation=2"),
        ({"recipe": {"epochs": -1}}, r"recipe\.epochs=-1 is out of range"),
        ({"recipe": {"batch_size": 0}}, r"recipe\.batch_size=0 is out of range"),
    ],
)
def test_bad_options_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pruning_channels(**options)


def test_what_cannot_be_reached_is_an_error(pretend_data: RandomData, network: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"least_share=0.9 and round_to=2 at most 1\.\d+ times less MACs can be reached, not 2.00"
    ):
        make_artifact(pruning_channels(least_share=0.9), network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    with pytest.raises(UserError, match="no channels with the importance 'bn_scale'"):
        groups_of(nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.Linear(8, 10)), pretend_data, "bn_scale")


def test_all_importances_rank_all_channels(pretend_data: RandomData, network: nn.Module) -> None:
    layers = {name: [group.layer for group in groups_of(network, pretend_data, name)] for name in IMPORTANCES}
    assert len({tuple(found) for found in layers.values()}) == 1 and len(layers["l1"]) == 4, (
        "stem's, second stage's, two bodies'"
    )
