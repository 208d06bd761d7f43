"""Keywords are options of the config; those that are none are refused, with the nearest that there is."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser

from qexp.api.options import literal, words_of
from qexp.api.running import own_hydra, same_random_numbers
from qexp.places import CONF
from qexp.types import UserError

NODES = {"model": "resnet8", "data": "random"}


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 3, -2, 0.25, 1e-7, "static", "null", "True", "nan", "12", "1e3", "a b", "it's", "",
        r"back\slash", r"ends in \ ".strip(), r"quote after backslash \'", "a,b", "x=y", "[1]", "{a: b}", "(x)",
        "ünïcode", " spaces ", '"', "#", [1, 2.5, "x y"], [[1], []], {"blocks.0.*": 8, "a b": "w8a4", "c:d": None},
    ],
    ids=repr,
)  # fmt: skip
def test_values_reach_the_config_as_they_are(value: Any) -> None:
    override = OverridesParser.create().parse_override(f"key={literal(value, 'key')}")
    found = override.value()
    assert found == value and type(found) is type(value)
    assert not override.is_sweep_override()


def test_numbers_of_libraries_and_paths_are_values() -> None:
    assert literal(np.float32(0.5), "x") == "0.5" and literal(torch.tensor(3), "x") == "3"
    assert literal((np.int64(1), Path("a b")), "x") == "[1,'a b']"
    with pytest.raises(UserError, match="observer is a Sequential; give None, a bool"):
        literal(torch.nn.Sequential(), "observer")


def test_keywords_are_keys_of_the_command_the_method_or_the_images() -> None:
    options = {
        "method": "static", "bits": 8, "observer": "mse", "mean": [0.5, 0.5, 0.5], "calibration_images": 16,
        "measure": {"accuracy": {"images": 5}, "energy": None}, "engines": "onnxruntime", "layer_bits": {"a.*": 8},
    }  # fmt: skip
    words, more = words_of("compress", NODES, options, ["report.points=2"])
    assert words == {
        "method": "static", "bits": "8", "method.observer": "mse", "data.mean": "[0.5,0.5,0.5]",
        "data.calibration_images": "16", "measure.accuracy.images": "5", "measure.energy": "null",
        "engine": "onnxruntime", "method.layer_bits": "{a.*:8}",
    }  # fmt: skip
    assert more == ["report.points=2"]


def test_a_node_of_the_method_comes_before_that_of_the_command() -> None:
    words, _ = words_of("compress", NODES, {"method": "qat", "recipe": {"epochs": 2}}, [])
    assert words == {"method": "qat", "method.recipe.epochs": "2"}
    assert words_of("compress", NODES, {"recipe": {"epochs": 2}}, [])[0] == {"recipe.epochs": "2"}


def test_a_training_has_the_options_of_its_recipe() -> None:
    words, _ = words_of("train", NODES, {"recipe": "finetune", "epochs": 2, "seed": 1}, [])
    assert words == {"recipe": "finetune", "recipe.epochs": "2", "seed": "1"}


def test_lists_are_gone_through_where_values_are_swept_and_not_for_images() -> None:
    options = {"method": ["none", "prune"], "bits": [8, 4], "sparsity": 0.5, "mean": [0.5, 0.5, 0.5]}
    words, _ = words_of("compress", NODES, options, [], sweeps=True)
    assert words == {
        "method": "none,prune", "bits": "8,4", "method.sparsity": "0.5", "data.mean": "[0.5,0.5,0.5]",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "overrides", "message"),
    [
        ({"obsever": "mse"}, [], "There is no option 'obsever': did you mean 'observer'"),
        ({"method": "statik"}, [], "There is no method=statik: did you mean 'static'"),
        ({"method": ["none", "static"]}, [], "has several values, and this takes one. qexp.sweep goes through several"),
        ({"measure": {"acuracy": None}}, [], ""),
        ({}, "bits=8", "must be a list of strings"),
    ],
)
def test_what_is_no_option_is_refused(options: dict[str, Any], overrides: Any, message: str) -> None:
    if not message:  # what Hydra finds out when it composes the config of the jobs
        assert words_of("compress", NODES, options, overrides)[0] == {"measure.acuracy": "null"}
        return
    with pytest.raises(UserError, match=message):
        words_of("compress", NODES, options, overrides)


def test_the_programs_own_hydra_and_random_numbers_stay() -> None:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        mine = hydra.core.global_hydra.GlobalHydra.instance()
        before = HydraConfig.instance()
        with own_hydra("compress") as own:
            assert hydra.core.global_hydra.GlobalHydra.instance().hydra is own and mine.hydra is not own
            assert HydraConfig.instance() is not before
        assert hydra.core.global_hydra.GlobalHydra.instance() is mine and HydraConfig.instance() is before
        assert hydra.compose("compress", ["model=resnet8"]).model.id == "resnet8"
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    wanted = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    with same_random_numbers():
        torch.manual_seed(5), np.random.seed(5), random.seed(5)
        torch.rand(3)
    assert (torch.rand(1), np.random.rand(), random.random()) == wanted
