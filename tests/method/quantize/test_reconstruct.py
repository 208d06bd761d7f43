"""Reconstruction works on units that cover the network, and repeats its results.

Weights end on their grid, and errors fall.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from qexp.artifact import EngineSpec
from qexp.data.random import RandomData
from qexp.method.artifacts import make_artifact
from qexp.method.graph import folded_graph
from qexp.method.quantize.blocks import Block, extract, residual_blocks, single_layers, value_of
from qexp.method.quantize.fake_quantize import FakeQuantize, PackedWeight, WeightFakeQuantize, quantizers
from qexp.method.quantize.numerics import Grid, as_rows
from qexp.method.quantize.observers import MinMax
from qexp.method.quantize.reconstruct import Dropped, SoftRounding, chance, in_floating_point
from qexp.types import UserError
from tests import configured
from tests.method.graphs import values

pytestmark = pytest.mark.integration  # compresses whole networks
SHORT: dict[str, Any] = {
    "iterations": 20,
    "batch_size": 8,
    "lr": 0.02,
    "first_last_bits": None,
    "weight_observer": "mse",
}
EVERY = pytest.mark.parametrize("algorithm", ["qdrop", "brecq", "adaround"])


@pytest.fixture
def small() -> nn.Module:
    """Two convolutions and a linear layer: as few as there can be."""
    torch.manual_seed(0)
    head = nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 10)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), *head
    ).eval()


def weighted(prepared: GraphModule, blocks: list[Block]) -> list[list[str]]:
    """Names of the layers in each unit."""
    graphs = [extract(prepared, block).graph for block in blocks]
    targets = [[str(node.target) for node in graph.nodes if node.op == "get_attr"] for graph in graphs]
    return [[name.removesuffix(".weight") for name in names if name.endswith(".weight")] for names in targets]


@pytest.mark.parametrize("bits", [4, "w4a32"])
def test_units_cover_every_layer_once(bits: int | str, pretend_data: RandomData, network: nn.Module) -> None:
    prepared = configured.method("static", bits=bits).calibrated(network, pretend_data, EngineSpec())
    assert [sorted(names) for names in weighted(prepared, residual_blocks(prepared))] == [
        ["stem.0"],
        ["blocks.0.body.0", "blocks.0.body.3"],
        ["blocks.1.body.0", "blocks.1.body.3", "blocks.1.shortcut.0"],
        ["classifier"],
    ]
    names = [name for name, module in network.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert weighted(prepared, single_layers(prepared)) == [[name] for name in names]

    x = pretend_data.calibration()[:]
    whole = values(prepared, x)
    found = [*residual_blocks(prepared), *single_layers(prepared)]
    assert [block.source for block in residual_blocks(prepared)[1:]] == [
        block.result for block in residual_blocks(prepared)[:-1]
    ], "one leads to the next"
    for block in found:
        with torch.no_grad():
            answer = extract(prepared, block)(whole[block.source.name])
        assert torch.equal(answer, whole[block.result.name])
    torch.testing.assert_close(value_of(prepared, found[1].result, x, batch=5), whole[found[1].result.name])


def test_without_rounding_it_is_the_network(pretend_data: RandomData, network: nn.Module) -> None:
    prepared = configured.method("static", bits=2).calibrated(network, pretend_data, EngineSpec())
    x = pretend_data.calibration()[:]
    with torch.no_grad():
        own, rounded = network(x), prepared(x)
        with in_floating_point(prepared):
            torch.testing.assert_close(prepared(x), own, rtol=1e-3, atol=1e-3)
        assert torch.equal(prepared(x), rounded) and (rounded - own).abs().max() > 0.1 * own.abs().max()


def test_a_soft_rounding_starts_at_the_weight_and_ends_on_the_grid() -> None:
    weight = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0))
    for shape in ({"axis": 0}, {"axis": 0, "group": 4}, {}):
        for grid in (Grid(-8, 7, True), Grid(-4, 3, False)):
            quantizer = FakeQuantize(MinMax, grid, dtype=torch.int8, **shape)
            quantizer(weight)
            quantizer.fix()
            soft = SoftRounding(weight, quantizer)
            step = float(quantizer.scale.max())
            torch.testing.assert_close(soft(weight), weight, rtol=0, atol=0.51 * step if not grid.symmetric else 1e-5)
            torch.testing.assert_close(soft.hard(), quantizer(weight), rtol=1e-5, atol=1e-6)
            with torch.no_grad():
                soft.v.copy_(torch.randn(soft.v.shape, generator=torch.Generator().manual_seed(1)) * 5)
            share = np.clip(1.2 / (1 + np.exp(-soft.v.detach().double().numpy())) - 0.1, 0, 1)  # AdaRound, equation 23
            np.testing.assert_allclose(soft.h().detach().numpy(), share, atol=1e-6)
            undecided = (1 - np.abs(2 * share - 1) ** 3).sum()  # equation 24
            assert soft.undecided(3).item() == pytest.approx(undecided, rel=1e-4)
            distance = (as_rows(soft.hard() - weight, *shape.values()) if shape else soft.hard() - weight).abs().max()
            assert distance <= 1.51 * step, "one neighbour or the other, and a half where the range ends"


def test_chance_and_what_it_drops() -> None:
    like, generator = torch.zeros(101, 99), torch.Generator().manual_seed(0)
    for probability in (0.0, 0.25, 0.5):
        drawn = chance(like, probability, generator)
        assert drawn.shape == like.shape and abs(drawn.double().mean().item() - probability) < 0.02
    quantizer = FakeQuantize(MinMax, Grid(0, 3, False), dtype=torch.uint8)
    quantizer(x := torch.rand(50, 50, generator=generator) + 0.01)
    quantizer.fix()
    mixed, rounded = Dropped(quantizer, 0.5, generator)(x), quantizer(x)
    exact = mixed == x
    assert torch.equal(mixed[~exact], rounded[~exact]) and 0.4 < exact.double().mean() < 0.6
    assert torch.equal(Dropped(quantizer, 0.0, generator)(x), rounded)


def tuned(network: nn.Module, data: RandomData, **options: Any) -> GraphModule:
    method = configured.method("reconstruct", **{**SHORT, **options})
    prepared = method.calibrated(network, data, EngineSpec())
    method.tune(prepared, data)
    return prepared


def sources(prepared: GraphModule, kind: type[FakeQuantize]) -> dict[str, FakeQuantize]:
    """Quantizers of that kind by the name of what they round."""
    nodes = [node for node in prepared.graph.nodes if node.op == "call_module" and node.target in quantizers(prepared)]
    found = {str(node.args[0].target if node.args[0].op == "get_attr" else node.args[0]): node.target for node in nodes}
    modules = {name: prepared.get_submodule(target) for name, target in found.items()}
    return {
        name: module
        for name, module in modules.items()
        if isinstance(module, WeightFakeQuantize) == (kind is WeightFakeQuantize)
    }


@EVERY
@pytest.mark.parametrize("options", [{}, {"group_size": 7, "weight_symmetric": False}], ids=["channels", "groups"])
def test_weights_end_on_their_grid(
    algorithm: str, options: dict[str, Any], pretend_data: RandomData, small: nn.Module
) -> None:
    before = copy.deepcopy(small.state_dict())
    prepared = tuned(small, pretend_data, bits=4, algorithm=algorithm, **options)
    moved = 0
    found = sources(prepared, WeightFakeQuantize)
    assert sorted(found) == ["0.weight", "2.weight", "6.weight"]
    expected = {}
    for name, quantizer in found.items():
        scale, zero_point = quantizer.scale.double()[:, None], quantizer.zero_point[:, None]
        tensors = prepared.get_parameter(name).detach(), before[name]
        exact, given = (quantizer.rows(value).double() / scale + zero_point for value in tensors)
        # What fills up a group is not part of the weight.
        integers, nearest = (value.round().clamp(quantizer.quant_min, quantizer.quant_max) for value in (exact, given))
        assert (exact - integers).abs().max() < 1e-4
        assert (integers - nearest).abs().max() <= 1
        moved += int((integers != nearest).sum())
        expected[name.replace(".", "_") + "_packed"] = integers
    assert moved > 0, "something was learned"
    converted = convert_pt2e(prepared)
    packed = {name: module for name, module in converted.named_modules() if isinstance(module, PackedWeight)}
    assert packed.keys() == expected.keys()
    for name, module in packed.items():
        assert torch.equal(module.integers().double(), expected[name])
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items()), (
        "the network itself is not changed"
    )


@pytest.mark.thorough
@pytest.mark.parametrize(("algorithm", "bits"), [("adaround", "w3a8"), ("brecq", 3), ("qdrop", 3)])
def test_reconstruction_beats_the_nearest_value(
    algorithm: str, bits: int | str, pretend_data: RandomData, small: nn.Module
) -> None:
    options = {"bits": bits, "first_last_bits": None, "weight_observer": "mse"}
    nearest = configured.method("static", **options).calibrated(small, pretend_data, EngineSpec())
    learned = tuned(small, pretend_data, algorithm=algorithm, **options, iterations=250, scale_lr=1e-3, batch_size=16)
    x = pretend_data.calibration()[:]
    exact = values(folded_graph(small, pretend_data), x)
    rounded, fitted = values(nearest, x), values(learned, x)
    # The pixels of pretend images are independent: there, no rounding is much better than the nearest.
    for name, most in (("relu", 1.001), ("relu_1", 0.95), ("linear", 0.75)):
        errors = [(one[name] - exact[name]).double().square().mean().item() for one in (rounded, fitted)]
        assert errors[1] < most * errors[0]


def everything(prepared: GraphModule) -> list[Tensor]:
    return [value.detach() for value in prepared.state_dict().values()]


def test_a_seed_decides_the_result(pretend_data: RandomData, small: nn.Module) -> None:
    first, again, other = (everything(tuned(small, pretend_data, bits=4, seed=seed)) for seed in (1, 1, 2))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("options", "learns"), [({"algorithm": "adaround"}, False), ({"power_of_two": True}, False), ({}, True)]
)
def test_scales_of_activations_learn_in_blocks(
    options: dict[str, Any], learns: bool, pretend_data: RandomData, small: nn.Module
) -> None:
    fixed = configured.method("reconstruct", bits=4, **SHORT, **options).calibrated(small, pretend_data, EngineSpec())
    learned = tuned(small, pretend_data, bits=4, **options)
    before, after = (sources(one, FakeQuantize) for one in (fixed, learned))
    changed = {name for name, quantizer in after.items() if not torch.equal(quantizer.scale, before[name].scale)}
    assert {"input_1", "relu", "relu_1"} <= before.keys()
    assert {"input_1", "relu", "relu_1"} <= changed if learns else not changed
    assert not any(isinstance(quantizer.scale, nn.Parameter) for quantizer in after.values())
    for name, quantizer in sources(learned, WeightFakeQuantize).items():
        assert torch.equal(quantizer.scale, sources(fixed, WeightFakeQuantize)[name].scale)


@pytest.mark.thorough
def test_a_reconstructed_artifact_is_kept_under_its_options(
    pretend_data: RandomData, small: nn.Module, tmp_path: Path
) -> None:
    source = {"model": "small", "weights": "random"}
    method = configured.method("reconstruct", **{**SHORT, "iterations": 2}, bits=4)
    artifact = make_artifact(method, small, pretend_data, EngineSpec(), source, tmp_path)
    assert artifact.label == "reconstruct int4" and artifact.simulated
    assert make_artifact(method, small, pretend_data, EngineSpec(), source, tmp_path).key == artifact.key
    with torch.no_grad():
        x = pretend_data.calibration()[:]
        answer, own = torch.export.load(artifact.folder / artifact.graph).module()(x), small(x)
    assert 0 < (answer - own).square().sum() / own.square().sum() < 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "adaruond"}, "did you mean 'adaround'"),
        ({"iterations": 0}, "iterations=0"),
        ({"drop": 1.0}, "drop=1.0"),
    ],
)
def test_wrong_options_are_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        configured.method("reconstruct", **options)
