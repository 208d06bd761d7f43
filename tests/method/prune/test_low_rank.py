"""Networks of low rank: their ranks hold the budget, counted by hand, and what stays whole has a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qexp.artifact import EngineSpec
from qexp.data.random import RandomData
from qexp.method.artifacts import make_artifact
from qexp.method.chain import Chain
from qexp.method.graph import count_macs
from qexp.method.prune.base import WEIGHTS_FILE, restore, save_weights
from qexp.method.prune.factorable import factorable, input_statistics
from qexp.method.prune.factors import Step, decompose
from qexp.method.prune.low_rank import with_ranks
from qexp.types import UserError
from tests import configured
from tests.method.training import SOURCE, low_rank
from tests.tiers import more


def by_hand(network: nn.Module, sides: dict[str, tuple[int, int]]) -> int:
    """MACs of the convolutions, by the sides of their results, and of the linear layers."""
    total = 0
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            height, width = sides[name]
            total += height * width * module.weight.numel()
        elif isinstance(module, nn.Linear):
            total += module.weight.numel()
    return total


# Results of the small network on 16x16 images, before and after its layers were split into k x 1 and 1 x k. The first
# one of a pair has the stride of the height only.
SIDES = {
    "stem.0": (16, 16), "blocks.0.body.0": (16, 16), "blocks.0.body.3": (16, 16), "blocks.1.body.0": (8, 8),
    "blocks.1.body.3": (8, 8), "blocks.1.shortcut.0": (8, 8),
}  # fmt: skip
SPLIT = SIDES | {f"{name}.{part}": side for name, side in SIDES.items() for part in ("first", "second")}
SPLIT["blocks.1.body.0.first"] = (8, 16)


@pytest.mark.parametrize("options", [{}, {"scope": "layer"}, {"images": 0}, {"ratio": 1.5, "least_rank": 3}])
def test_ranks_hold_the_budget_counted_by_hand(
    options: dict[str, Any], pretend_data: RandomData, network: nn.Module, tmp_path: Path
) -> None:
    method = low_rank(**options)
    made = method.factorised(network, pretend_data, tmp_path / "x")
    assert by_hand(network, SIDES) == count_macs(network, pretend_data)
    assert by_hand(made, SPLIT) == count_macs(made, pretend_data)
    assert method.ratio <= by_hand(network, SIDES) / by_hand(made, SPLIT) < 1.25 * method.ratio
    ranks = {name: len(m.weight) for name, m in made.named_modules() if name.endswith(".first")}
    assert ranks and all(rank >= method.least_rank for rank in ranks.values())


def test_parameters_are_a_budget_too(pretend_data: RandomData, network: nn.Module, tmp_path: Path) -> None:
    made = low_rank(target="parameters", scheme="channel", ratio=1.8).factorised(network, pretend_data, tmp_path / "x")
    before, after = (sum(p.numel() for p in each.parameters()) for each in (network, made))
    assert 1.8 <= before / after < 2.2
    first = made.get_submodule("blocks.1.body.3.first")
    assert isinstance(first, nn.Conv2d) and first.kernel_size == (3, 3) and first.stride == (1, 1)


def test_costs_are_those_of_the_network_at_each_rank(pretend_data: RandomData, network: nn.Module) -> None:
    sites, _ = factorable(network, pretend_data, 1)
    strided = next(site for site in sites if site.path == "blocks.1.body.0")
    assert strided.costs("macs") == (64 * 16 * 8 * 9, 8 * 16 * 8 * 3 + 64 * 16 * 3)
    assert strided.costs("parameters") == (16 * 8 * 9, 8 * 3 + 16 * 3)


def test_what_a_first_factor_reads_is_what_its_convolution_multiplies(pretend_data: RandomData) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, 4, (3, 5), padding=(1, 0)))
    network = nn.Sequential(*network, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)).eval()
    x = network[:2](pretend_data.calibration()[:8]).detach().numpy()  # [8,6,8,8]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    rows = np.array([padded[n, :, i : i + 3, j].reshape(-1) for n in range(8) for i in range(8) for j in range(8)])
    sites, _ = factorable(network, pretend_data, 1)
    covariance, mean = input_statistics(network, pretend_data, sites, 8)[1]
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(covariance, np.cov(rows.T, bias=True), rtol=1e-3, atol=1e-5)


def test_full_rank_reproduces_the_network(pretend_data: RandomData, network: nn.Module, tmp_path: Path) -> None:
    sites, _ = factorable(network, pretend_data, 1)
    seen = input_statistics(network, pretend_data, sites, 32)
    parts = [decompose(site.module.weight, 1, *each) for site, each in zip(sites, seen, strict=True)]
    full = [Step(index, len(part.values), 0, 0) for index, part in enumerate(parts)]
    made, x = with_ranks(network, sites, parts, full), pretend_data.calibration()[:]
    assert len(sites) == 7
    with torch.no_grad():
        torch.testing.assert_close(made(x), network(x), rtol=1e-5, atol=1e-5)
    save_weights(made, tmp_path / "x.safetensors")
    with torch.no_grad():
        assert torch.equal(restore(network, tmp_path / "x.safetensors")(x), made(x))


class Odd(nn.Module):
    """Layers that cannot be factorised, each for another reason, and one that can."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.one = nn.Conv2d(16, 16, 3, padding=1)
        self.same = self.one
        self.own = Scaled(16, 16, 3, padding=1)
        self.read = nn.Linear(16, 16)
        self.read_too = nn.Linear(16, 16)
        self.spectral = nn.utils.parametrizations.orthogonal(nn.Linear(16, 16))
        self.classifier = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.same(self.one(self.grouped(self.depthwise(self.stem(x)))))
        x = self.own(x).mean((2, 3))
        x = self.spectral(nn.functional.linear(x, self.read.weight))
        return self.classifier(self.read_too(x) + self.read_too.weight.sum())


class Scaled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight / 2, self.bias, padding=1)


REASONS = {
    "depthwise": "depthwise", "grouped": "grouped", "one": "its weight belongs to several modules",
    "own": "it computes in a way of its own", "read": "its weight is read without calling it",
    "read_too": "its weight is also read by another module",
    "spectral": "its weight or its result is computed by something else too",
}  # fmt: skip


def test_what_cannot_be_factorised_is_named_with_its_reason(pretend_data: RandomData, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Odd().eval()
    sites, reasons = factorable(network, pretend_data, 1)
    assert reasons == REASONS and [site.path for site in sites] == ["stem", "classifier"]
    with pytest.raises(UserError, match=r"least_rank=1 and round_to=2 at most 1\.\d+ times less MACs"):
        low_rank().factorised(network, pretend_data, tmp_path / "x")


@pytest.mark.integration
def test_an_artifact_says_what_it_is_and_engines_run_it(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path
) -> None:
    artifact = make_artifact(low_rank(), network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    made = restore(network, artifact.folder / WEIGHTS_FILE)
    assert artifact.macs == by_hand(made, SPLIT) and artifact.label == "low_rank 2x MACs"
    assert artifact.parameters == sum(p.numel() for p in made.parameters()) == artifact.packed_bytes // 4
    table = (artifact.folder / "ranks.csv").read_text().splitlines()
    assert table[0] == "layer,rank,why_none" and len(table) == 1 + 7
    split = {name.removesuffix(".first") for name, _ in made.named_modules() if name.endswith(".first")}
    assert {line.split(",")[0] for line in table[1:] if line.split(",")[1] != "0"} == split
    assert ("not_factorised" in artifact.notes) == (len(split) < 7)
    x = pretend_data.calibration()[:4].numpy()
    with torch.no_grad():
        expected = made(torch.from_numpy(x)).numpy()
    for engine in (configured.engine("eager"), configured.engine("onnxruntime")):
        lowered = engine.lower(artifact, 4, 1)
        answer = engine.open(lowered.folder / engine.file_name(4, 1), 1)(np.ascontiguousarray(x))
        np.testing.assert_allclose(answer, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.integration
def test_factors_are_fine_tuned(pretend_data: RandomData, network: nn.Module, tmp_path: Path) -> None:
    plain, tuned = (
        make_artifact(low_rank({"epochs": epochs}), network, pretend_data, EngineSpec(), SOURCE, tmp_path)
        for epochs in (0, 1)
    )
    names = ["stem.0.first.weight", "blocks.1.body.3.second.weight"]
    before, after = (dict(restore(network, a.folder / WEIGHTS_FILE).named_parameters()) for a in (plain, tuned))
    assert before.keys() == after.keys() and any(name in before for name in names)
    assert all(not torch.equal(before[name], after[name]) for name in names if name in before)
    assert not list(tmp_path.glob(".training-*"))


@pytest.mark.integration
def test_a_network_of_low_rank_is_quantised_and_pruned(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path
) -> None:
    engine_spec = configured.engine("onnxruntime").spec
    chain = Chain({"low_rank": low_rank(), "static": configured.method("static")})
    artifact = make_artifact(chain, network, pretend_data, engine_spec, SOURCE, tmp_path)
    stage = make_artifact(low_rank(), network, pretend_data, engine_spec, SOURCE, tmp_path)
    assert artifact.macs == stage.macs and artifact.bits == 8 and artifact.method == "low_rank+static"
    assert artifact.quantized_macs == artifact.macs and {layer.name for layer in artifact.layers} == {
        layer.name for layer in stage.layers
    }
    again = Chain({"low_rank": low_rank(), "again": low_rank(ratio=1.2)})
    smaller = make_artifact(again, network, pretend_data, engine_spec, SOURCE, tmp_path)
    assert smaller.macs <= stage.macs / 1.2, "factors have factors"


@pytest.mark.thorough
@pytest.mark.integration
def test_latency_is_searched_until_the_timer_says_so(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path
) -> None:
    class PretendTimer:
        options = property(lambda _: {"engine": "pretend"})

        def speedup(self, candidate: Any, reference: Any) -> float:
            return reference.macs / candidate.macs

    artifact = make_artifact(
        low_rank(target="latency", ratio=1.5, timer=PretendTimer()),
        network,
        pretend_data,
        EngineSpec(),
        SOURCE,
        tmp_path,
    )
    assert artifact.macs <= count_macs(network, pretend_data) / 1.5 and artifact.label == "low_rank 1.5x latency"
    assert not list(tmp_path.glob(".timed-*"))


@pytest.mark.integration
@pytest.mark.parametrize(
    ("library", "name", "options", "reason"),
    [
        ("torchvision", "mobilenet_v3_small", {}, "depthwise"),
        *more(("timm", "vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48}, "")),
        *more(("torchvision", "VisionTransformer", {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2,
        "hidden_dim": 32, "mlp_dim": 64}, "its weight is read without calling it")),
    ],
)  # fmt: skip
def test_networks_of_others_go_through(
    library: str, name: str, options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    if library == "timm":
        network = pytest.importorskip("timm").create_model(name, num_classes=10, **options)
    else:
        network = getattr(pytest.importorskip("torchvision.models"), name)(num_classes=10, **options)
    data = configured.data(
        "random", images=16, num_classes=10, name="random", image_size=32, channels=3, cache_dir=str(tmp_path),
        calibration_images=16,
    )  # fmt: skip
    data.open()
    artifact = make_artifact(low_rank(ratio=1.3, round_to=8), network.eval(), data, EngineSpec(), SOURCE, tmp_path)
    assert artifact.macs <= count_macs(network, data) / 1.3
    assert reason in artifact.notes.get("not_factorised", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "mac"}, "low_rank: there is no target 'mac'.*did you mean 'macs'"),
        ({"scheme": "spacial"}, "no scheme 'spacial'.*did you mean 'spatial'"),
        ({"scope": "local"}, "no scope 'local'"),
        ({"ratio": 1}, "ratio=1 leaves nothing to reduce"),
        ({"round_to": 0}, "round_to=0 is out of range"),
        ({"least_rank": 1.5}, r"least_rank=1\.5 is out of range"),
        ({"images": -1}, "images=-1 is out of range"),
        ({"target": "latency", "timer": None}, r"needs a timer, as in conf/method/low_rank\.yaml"),
    ],
)
def test_bad_options_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        low_rank(**options)


def test_only_what_calibrates_says_so() -> None:
    assert low_rank().calibrates and not low_rank(images=0).calibrates
