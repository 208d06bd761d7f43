"""Chains: each stage goes on from the network that the one before made, and is made once."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn

from qexp.artifact import EngineSpec
from qexp.data.random import RandomData
from qexp.method.artifacts import make_artifact
from qexp.method.chain import Chain
from qexp.method.fine_tuning import FineTuningSession
from qexp.method.prune.base import NetworkMethod, restore
from qexp.method.quantize.qat import QAT
from qexp.places import CONF
from qexp.types import Unsupported, UserError
from tests import configured
from tests.method.training import SOURCE, TORCHSCRIPT, pruning, pruning_channels, qat

pytestmark = pytest.mark.integration  # compresses whole networks


class Scaled(NetworkMethod):
    """Multiplies the classifier's weights, and counts how often it was asked."""

    name = "scaled"

    def __init__(self, factor: float, asked: list[Any]):
        super().__init__(pruning().recipe, coded=False)
        self.factor, self.asked = factor, asked

    @property
    def options(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def transform(self, network: nn.Module, data: Any, folder: Path) -> nn.Module:
        self.asked.append((self.factor, self.teacher))
        made: Any = copy.deepcopy(network)
        with torch.no_grad():
            made.classifier.weight.mul_(self.factor)
            made.classifier.bias.mul_(self.factor)
        return made


def logits(artifact: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.export.load(artifact.folder / artifact.graph).module()(x)


def test_stages_go_on_from_each_other_and_are_made_once(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path
) -> None:
    asked: list[Any] = []
    x = pretend_data.calibration()[:]

    def chain(*factors: float) -> Chain:
        return Chain({f"s{i}": Scaled(factor, asked) for i, factor in enumerate(factors)})

    made = make_artifact(chain(2, 3, 5), network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(logits(made, x), 30 * network(x), rtol=1e-4, atol=1e-3)
    assert [factor for factor, _ in asked] == [2, 3, 5] and all(teacher is network for _, teacher in asked)
    assert made.method == "scaled+scaled+scaled" and made.label == "scaled + scaled + scaled"
    make_artifact(chain(2, 3, 7), network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    make_artifact(Scaled(2, asked), network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    assert [factor for factor, _ in asked] == [2, 3, 5, 7], (
        "of another chain and of the stage alone only what is missing"
    )
    other = make_artifact(chain(3, 3, 5), network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    assert [factor for factor, _ in asked] == [2, 3, 5, 7, 3, 3, 5], "a stage after another one is another artifact"
    plain = make_artifact(configured.method("none"), network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    assert {made.reference, other.reference} == {plain.folder.name}
    make_artifact(chain(2, 3, 5), network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    assert len(asked) == 7


@pytest.mark.thorough
def test_a_pruned_network_is_quantised(pretend_data: RandomData, network: nn.Module, tmp_path: Path) -> None:
    engine_spec = configured.engine("onnxruntime").spec
    chain = Chain({"prune_channels": pruning_channels(), "static": configured.method("static")})
    artifact = make_artifact(chain, network, pretend_data, engine_spec, SOURCE, tmp_path)
    stage = make_artifact(pruning_channels(), network, pretend_data, engine_spec, SOURCE, tmp_path)
    pruned = restore(network, stage.folder / "weights.safetensors")
    alone = make_artifact(
        configured.method("static"), pruned, pretend_data, engine_spec, {**SOURCE, "weights": "pruned"}, tmp_path
    )
    x = pretend_data.calibration()[:]
    assert torch.equal(logits(artifact, x), logits(alone, x)), "as if static had been given the pruned network"
    assert artifact.macs == stage.macs and artifact.packed_bytes == alone.packed_bytes
    assert artifact.method == "prune_channels+static" and artifact.bits == 8
    assert artifact.label == f"prune_channels 2x MACs + {alone.label}"
    assert len(list(tmp_path.glob("small-prune_channels-32bit-*"))) == 1, "the stage is kept, and found again by itself"


def test_an_engine_that_reads_torchscript_gets_the_last_stages_counterpart(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path
) -> None:
    chain = Chain({"prune_channels": pruning_channels(), "static": configured.method("static")})
    artifact = make_artifact(chain, network, pretend_data, TORCHSCRIPT, SOURCE, tmp_path)
    assert artifact.graph == "model.ts" and artifact.method == "prune_channels+static"
    with pytest.raises(Unsupported, match="gives pt2, and this engine reads torchscript"):
        make_artifact(
            Chain({"a": pruning_channels(), "b": pruning_channels(ratio=3)}),
            network,
            pretend_data,
            TORCHSCRIPT,
            SOURCE,
            tmp_path,
        )


@pytest.mark.thorough
def test_training_with_rounding_asks_the_uncompressed_network(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = qat({"epochs": 1, "distillation": 0.5})
    taught_by, train = [], FineTuningSession.train

    def remember(session: FineTuningSession, *arguments: Any) -> None:
        taught_by.append((session.recipe, session.teacher))
        train(session, *arguments)

    monkeypatch.setattr(FineTuningSession, "train", remember)
    artifact = make_artifact(
        Chain({"prune": pruning_channels(), "qat": last}), network, pretend_data, EngineSpec(), SOURCE, tmp_path
    )
    assert (
        [teacher for recipe, teacher in taught_by if recipe is last.recipe] == [network]
        and artifact.bits == 4
        and artifact.simulated
    )


def test_each_stage_has_its_own_node() -> None:
    given = ["model=resnet8", "data=digits", "method=prune_channels_static", "bits=6", "trainer=cpu"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(
            "compress", [*given, "method.stages.prune_channels.ratio=3", "method.stages.static.fuse=false"]
        ).method
        nested = compose(
            "compress", ["model=resnet8", "method=prune_channels_qat", "method.stages.qat.recipe.epochs=7"]
        ).method
    chain = instantiate(config)
    assert chain.bits == 6 and chain.last.bits == 6 and chain.before[0].bits == 32, "bits are the last stage's"
    assert chain.before[0].ratio == 3 and chain.torchscript.last.fuse is False, "options refer to their own stage"
    assert nested.stages.qat.recipe.scheduler.T_max == 7 and nested.stages.prune_channels.recipe.epochs == 30
    assert isinstance(instantiate(nested).last, QAT)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({}, "at least two stages, not 0"),
        ({"static": configured.method("static")}, "at least two stages, not 1"),
        (
            {"static": configured.method("static"), "none": configured.method("none")},
            "The stage 'static' gives no network",
        ),
    ],
)
def test_what_is_no_chain_is_an_error(stages: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Chain(stages)


def test_bits_that_the_last_stage_does_not_have_are_unsupported(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path
) -> None:
    chain = Chain({"prune_channels": pruning_channels(), "static": configured.method("static", bits=16)})
    with pytest.raises(Unsupported, match="static works at 2 to 8 bits"):
        make_artifact(chain, network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    assert not list(tmp_path.glob("small*")), "nothing is pruned for it"


def test_a_recipe_of_no_epochs_trains_nothing(pretend_data: RandomData, network: nn.Module, tmp_path: Path) -> None:
    make_artifact(qat({"epochs": 0}), network, pretend_data, EngineSpec(), SOURCE, tmp_path)
    assert not list(tmp_path.glob(".training-*"))
