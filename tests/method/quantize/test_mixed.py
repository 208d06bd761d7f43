"""Bits per layer: artifacts made to a plan, budgets, plans there and back, and what cannot be."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from qexp.artifact import Artifact, EngineSpec
from qexp.data.random import RandomData
from qexp.method.artifacts import make_artifact
from qexp.method.bits import BitWidths
from qexp.method.quantize.bit_plan import Budget, average_bits, find_plan, plan_text, read_plan, size_mb, weights_of
from qexp.method.quantize.mixed import Mixed
from qexp.method.quantize.sensitivity import Sensitivity
from qexp.types import UserError
from tests import configured
from tests.method.training import SOURCE

pytestmark = pytest.mark.integration  # compresses whole networks
ENDS = ("stem.0", "classifier")


def made(method: Mixed, network: nn.Module, data: RandomData, root: Path) -> Artifact:
    return make_artifact(method, network, data, EngineSpec(), SOURCE, root)


def bits_in(artifact: Artifact) -> dict[str, int]:
    return {layer.name: int(layer.weight.removeprefix("int")) for layer in artifact.layers}


def answers(artifact: Artifact, data: RandomData) -> torch.Tensor:
    return torch.export.load(artifact.folder / artifact.graph).module()(data.calibration()[:])


@pytest.mark.thorough
def test_the_artifact_has_the_bits_of_its_plan_and_a_plan_given_back_makes_the_same(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path
) -> None:
    artifact = made(configured.method("mixed"), network, pretend_data, tmp_path)
    assert sorted(p.name for p in artifact.folder.iterdir()) == sorted(["artifact.json", *artifact.files])
    assert (
        sorted(artifact.files) == ["histograms.npz", "layers.csv", "model.pt2", "plan.yaml", "sensitivity.csv"]
        and artifact.simulated
    )

    plan = yaml.safe_load((artifact.folder / "plan.yaml").read_text())
    bits = {name: entry["bits"] for name, entry in plan["layers"].items()}
    assert bits == bits_in(artifact) == {la.name: int(la.activation.removeprefix("uint")) for la in artifact.layers}
    assert all(bits[end] == 8 for end in ENDS) and {*bits.values()} <= {2, 3, 4, 6, 8} and len({*bits.values()}) > 1
    numbers = {name: network.get_submodule(name).weight.numel() for name in bits}
    assert {name: entry["parameters"] for name, entry in plan["layers"].items()} == numbers
    mean = sum(numbers[name] * bits[name] for name in bits) / sum(numbers.values())
    assert plan["average_bits"] == pytest.approx(mean, abs=1e-4) and 3 < mean <= 4
    assert artifact.label == f"mixed {mean:.1f} bits" and artifact.bits == "avg4"
    assert plan["size_mb"] * 1e6 == artifact.packed_bytes

    rows = list(csv.DictReader((artifact.folder / "sensitivity.csv").open()))
    assert [(r["layer"], r["weight_bits"]) for r in rows] == [(name, str(b)) for name in bits for b in (2, 3, 4, 6, 8)]
    chosen = [r for r in rows if int(r["weight_bits"]) == bits[r["layer"]]]
    assert plan["loss_change"] == pytest.approx(sum(float(r["loss_change_nats"]) for r in chosen), rel=1e-3)
    assert {r["layer"]: float(r["sqnr_db"]) for r in chosen} == pytest.approx(
        {name: entry["sqnr_db"] for name, entry in plan["layers"].items()}, abs=0.01
    )

    edited = tmp_path / "edited.yaml"
    edited.write_text((artifact.folder / "plan.yaml").read_text())
    again = made(configured.method("mixed", plan=str(edited)), network, pretend_data, tmp_path)
    assert again.folder != artifact.folder and "sensitivity.csv" not in again.files
    assert torch.equal(answers(again, pretend_data), answers(artifact, pretend_data))
    assert "loss_change" not in (again.folder / "plan.yaml").read_text(), "it was not measured"
    # The content counts, and the path does not.
    moved = edited.rename(tmp_path / "moved.yaml")
    assert made(configured.method("mixed", plan=str(moved)), network, pretend_data, tmp_path).folder == again.folder
    moved.write_text(moved.read_text().replace("{bits: 8", "{bits: w6a8"))
    other = configured.method("mixed", plan=str(moved))
    assert other.options["plan"] == {name: "w6a8" if b == 8 else f"w{b}a{b}" for name, b in bits.items()}


def test_every_option_counts_in_the_key(pretend_data: RandomData) -> None:
    options = [{}, {"candidates": [2, 4, 8]}, {"budget": {"average_bits": 4.5}}, {"sensitivity_images": 99}]
    assert len(
        {repr(sorted(configured.method("mixed", **given).options.items(), key=str)) for given in options}
    ) == len(options)
    assert configured.method("mixed", bits=4).options == configured.method("mixed").options, "bits are the budget's"


@pytest.mark.parametrize("share", [0.02, 0.6])
def test_the_packed_size_is_within_its_budget(share: float, pretend_data: RandomData, network: nn.Module) -> None:
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    weights = weights_of(network, names)
    rest = 4 * (
        sum(p.numel() for p in network.parameters())
        - sum(w.numel() for w in weights.values())
        + sum(len(w) for w in weights.values())
    )

    def megabytes(inner: int) -> float:
        """The size with 8 bits in the first and last layer and `inner` in the others."""
        return (rest + sum(w.numel() * (8 if name in ENDS else inner) for name, w in weights.items()) / 8) / 1e6

    limit = megabytes(2) + share * (megabytes(8) - megabytes(2))
    plan, table = find_plan(
        configured.method("static", bits=4),
        network,
        pretend_data,
        EngineSpec(),
        [2, 3, 4, 6, 8],
        Budget(size_mb=limit),
        16,
    )
    size = (rest + sum(weights[name].numel() * bits.weight for name, bits in plan.items()) / 8) / 1e6
    assert megabytes(2) <= size <= limit and size_mb(network, weights, plan) == pytest.approx(size, abs=1e-6)
    assert len(table) == 35 and [bits.weight for name, bits in plan.items() if name in ENDS] == [8, 8]


def test_layers_keep_bits_that_are_given_and_the_others_share_what_is_left(
    pretend_data: RandomData, network: nn.Module
) -> None:
    method = configured.method("static", bits=4, first_last_bits=None, layer_bits={"blocks.1.*": 3, "stem.0": "w8a5"})
    plan, table = find_plan(method, network, pretend_data, EngineSpec(), [2, 4, 8], Budget(average_bits=4), 16)
    assert plan["stem.0"] == BitWidths(8, 5)
    assert all(bits == BitWidths(3, 3) for name, bits in plan.items() if name.startswith("blocks.1."))
    assert all(bits.weight in (2, 4, 8) for name, bits in plan.items() if name.startswith(("blocks.0.", "classifier")))
    weights = weights_of(network, list(plan))
    assert average_bits(weights, plan) <= 4
    assert ("stem.0", BitWidths(8, 5)) in {(each.layer, each.bits) for each in table}


def test_eight_bits_throughout_are_for_engines(pretend_data: RandomData, network: nn.Module, tmp_path: Path) -> None:
    assert (
        not configured.method("mixed").for_engines
        and not configured.method("mixed", candidates=[4, 8], budget={"average_bits": 8}).for_engines
    )
    eights, static = configured.method("mixed", candidates=[8], budget={"average_bits": 8}), configured.method("static")
    assert eights.for_engines and eights.resolve(EngineSpec()) == static.resolve(EngineSpec())
    plan = tmp_path / "eights.yaml"
    plan.write_text(
        "layers: {"
        + ", ".join(f"{name}: 8" for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear))
        + "}"
    )
    of_few = configured.method("mixed", plan=str(plan), candidates=[2, 4])
    assert of_few.for_engines, "a plan is not searched for, so candidates play no part"
    artifact = made(configured.method("mixed", plan=str(plan)), network, pretend_data, tmp_path)
    reference = make_artifact(static, network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    assert not artifact.simulated and torch.equal(answers(artifact, pretend_data), answers(reference, pretend_data))


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 6)), nn.Linear(6, 3))
    plan = {"0": BitWidths(8, 8), "1.0": BitWidths(2, 6), "2": BitWidths(32, 32)}
    table = [Sensitivity(name, bits, 1e-5, float("inf")) for name, bits in plan.items()]
    file = tmp_path / "plan.yaml"
    for measured in (table, []):
        file.write_text(plan_text(network, plan, measured))
        assert read_plan(file) == plan
        header = yaml.safe_load(file.read_text())
        assert header["average_bits"] == pytest.approx((32 * 8 + 48 * 2 + 18 * 32) / 98, abs=1e-4)
        # Biases in fp32, and a scale for each of 8 and 6 channels.
        assert header["size_mb"] * 1e6 == pytest.approx(4 * (8 + 6 + 3) + 4 * (8 + 6) + 32 + 12 + 18 * 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layers: {stem.0: {bits: 9}}", r"plan.yaml: bits of stem.0 are 9"),
        ("layers: {stem.0: {bit: 4}}", "bits of stem.0 are None"),
        ("layers: {stem.0: w4a16}", "w4a16"),
        ("stem.0: 4", "has no `layers`"),
        ("layers: [4", "cannot be read"),
    ],
)
def test_what_is_wrong_in_a_plan_is_named(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        configured.method("mixed", plan=str(file))


def test_layers_that_a_plan_lacks_or_invents_are_named(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path
) -> None:
    file = tmp_path / "plan.yaml"
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for given, message in (
        (names[1:], "nothing of these.*stem.0"),
        ([*names, "clasifier"], "has not: clasifier. did you mean 'classifier'"),
    ):
        file.write_text("layers: {" + ", ".join(f"{name}: 4" for name in given) + "}")
        with pytest.raises(UserError, match=message):
            made(configured.method("mixed", plan=str(file)), network, pretend_data, tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget": {"average_bits": 4, "size_mb": 1}}, "average_bits=4 and size_mb=1"),
        ({"budget": {"average_bits": None, "size_mb": None}}, "Give one of them"),
        ({"budget": {"average_bits": 0}}, "above 0"),
        ({"candidates": [1, 4]}, r"candidates=\[1, 4\]"),
        ({"candidates": []}, "2 to 8"),
        ({"sensitivity_images": 0}, "at least 1"),
        ({"plan": "nowhere.yaml"}, "nowhere.yaml cannot be read"),
    ],
)
def test_options_that_cannot_be(given: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        configured.method("mixed", **given)


def test_a_plan_and_bits_by_layer_contradict_each_other(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("layers: {stem.0: 4}")
    with pytest.raises(UserError, match="leave method.layer_bits out"):
        configured.method("mixed", plan=str(file), layer_bits={"stem.0": 8})


def test_a_budget_that_no_plan_meets_says_the_least(pretend_data: RandomData, network: nn.Module) -> None:
    def search(budget: Budget) -> float:
        plan, _ = find_plan(configured.method("static", bits=4), network, pretend_data, EngineSpec(), [3, 6], budget, 1)
        return average_bits(weights_of(network, list(plan)), plan)

    numbers = {n: m.weight.numel() for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    least = sum(count * (8 if name in ENDS else 3) for name, count in numbers.items()) / sum(numbers.values())
    with pytest.raises(UserError, match="average_bits=2.5 cannot be met") as refused:
        search(Budget(average_bits=2.5))
    told = float(str(refused.value).partition("it is ")[2].split()[0])
    assert least <= told < least + 1e-3 and search(Budget(average_bits=told)) == pytest.approx(least)
    with pytest.raises(UserError, match=r"size_mb=0.001 cannot be met.* MB") as refused:
        search(Budget(size_mb=0.001))
    told = float(str(refused.value).partition("it is ")[2].split()[0])
    search(Budget(size_mb=told))
