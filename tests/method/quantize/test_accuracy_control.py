"""Layers go back to floating point until the accuracy holds, and really compute in floating point on the engines."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from qexp.artifact import Artifact, EngineSpec
from qexp.data.random import RandomData
from qexp.engine.base import Engine
from qexp.method.artifacts import make_artifact
from qexp.method.quantize import accuracy_control
from qexp.method.quantize.accuracy_control import fewest, right
from qexp.types import Unsupported, UserError
from tests import configured
from tests.tiers import more

SOURCE = {"model": "small", "weights": "a digest", "network": {}}


@pytest.mark.parametrize("most", [1, 2, 7, 20])
def test_the_fewest_are_found_with_few_questions(most: int) -> None:
    for answer in range(most + 2):
        asked: list[int] = []

        def holds(count: int, least: int = answer, asked: list[int] = asked) -> bool:
            asked.append(count)
            return count >= least

        assert fewest(holds, most) == (answer if answer <= most else None)
        assert len({*asked}) == len(asked) <= 3 + 2 * math.log2(max(1, min(answer, most)))


@pytest.mark.parametrize("value", [-0.1, 100, "half"])
def test_points_out_of_range_are_refused(value: Any) -> None:
    with pytest.raises(UserError, match=rf"method.accept_points={value} is out of range"):
        configured.method("static", accept_points=value)
    with pytest.raises(UserError, match="method.accept_images=0 is out of range"):
        configured.method("static", accept_images=0)


def test_kernels_that_have_no_layers_in_floating_point_are_refused() -> None:
    controlled = configured.method("static", accept_points=0.5)
    assert controlled.torchscript is None and configured.method("static").torchscript is not None
    inductor = configured.engine("inductor").spec
    with pytest.raises(Unsupported, match="needs an engine with integer kernels of its own"):
        controlled.resolve(inductor)
    with pytest.raises(Unsupported, match="layer_bits with layers in floating point needs an engine"):
        configured.method("static", layer_bits={"stem.0": 32}).resolve(inductor)
    assert controlled.resolve(EngineSpec()) == configured.method("static").resolve(EngineSpec())


class Uneven(nn.Module):
    """Three layers. The second has large weights for a channel that is always 0, so 8 bits leave none of the others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.fine, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Linear(8 * 256, 10)
        channel = torch.arange(8) == 0
        self.first.weight = nn.Parameter(self.first.weight.detach() * ~channel[:, None, None, None])
        self.first.bias = nn.Parameter(torch.where(channel, -1.0, 0.0))
        self.fine.weight = nn.Parameter(torch.where(channel[:, None, None], 1e3, self.fine.weight.detach()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.fine(self.first(x).relu()).relu().flatten(1))


@pytest.fixture
def own_answers(pretend_data: RandomData) -> tuple[nn.Module, RandomData]:
    """A network, and images whose labels are what it answers."""
    network = Uneven().eval()
    indices = np.arange(len(pretend_data.splits["train"].labels))
    with torch.no_grad():
        answers = network(pretend_data.normalise(torch.from_numpy(pretend_data.pixels("train", indices)))).argmax(1)
    pretend_data.splits["train"].labels[:] = answers.numpy()
    pretend_data.validation_indices = indices
    assert len({*answers.tolist()}) > 2
    return network, pretend_data


@pytest.mark.integration
def test_layers_go_back_until_the_accuracy_holds_and_are_float_in_the_engines_file(
    own_answers: tuple[nn.Module, RandomData], tmp_path: Path
) -> None:
    network, data = own_answers
    data.spec = replace(data.spec, pretend=False)
    options = {"remedy": "none", "observer": "minmax", "reduce_range": True}  # on any processor
    engine = configured.engine("onnxruntime")
    plain, held = (
        make_artifact(configured.method("static", accept_points=points, **options), network, data, engine.spec, SOURCE,
                      tmp_path / "artifacts")
        for points in (None, 5)
    )  # fmt: skip

    def accuracy(artifact: Artifact) -> float:
        return right(torch.export.load(artifact.folder / artifact.graph).module(), data, 16)

    assert accuracy(plain) < 0.8 and accuracy(held) >= 0.95
    floats = [layer.name for layer in held.layers if layer.weight == "float32"]
    assert "fine" in floats and not held.simulated and held.quantized_macs > 0
    assert held.label == f"static int8 7-bit weights, {len(floats)} float layer{'s' * (len(floats) > 1)}"
    note = held.notes["accuracy_control"]
    assert (
        note.startswith(f"{len(floats)} of 3 layers in floating point: fine (")
        and "points lost on 64 validation images" in note
    )
    rows = [*csv.DictReader((held.folder / accuracy_control.GAINS_FILE).open())]
    gains = [float(row["loss_change_nats"]) for row in rows]
    assert gains == sorted(gains, reverse=True) and {row["layer"] for row in rows[: len(floats)]} == {*floats}

    graph = onnx.load(engine.lower(held, 1, 1).folder / engine.file_name(1, 1)).graph
    given = {output: node.op_type for node in graph.node for output in node.output}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    weights = [given.get(node.input[1], "constant") for node in layers]
    assert weights.count("DequantizeLinear") == 3 - len(floats), "the others have fp32 weights"
    assert right(on_engine(engine, held), data, 16) == accuracy(held)


@pytest.mark.integration
@pytest.mark.parametrize("name", more("openvino", "executorch", "torch_ao"))
def test_other_engines_leave_them_in_floating_point(
    name: str, own_answers: tuple[nn.Module, RandomData], tmp_path: Path
) -> None:
    network, data = own_answers
    engine = configured.engine(name)
    method = configured.method("static", layer_bits={"fine": 32}, remedy="none", reduce_range=True)
    if name == "torch_ao":
        with pytest.raises(Unsupported, match="static gives pt2, and this engine reads torchscript"):
            make_artifact(configured.method("static", accept_points=5), network, data, engine.spec, SOURCE, tmp_path)
        return
    held = make_artifact(method, network, data, engine.spec, SOURCE, tmp_path)
    with torch.no_grad():
        assert right(on_engine(engine, held), data, 16) > right(network, data, 16) - 0.05


def on_engine(engine: Engine, artifact: Artifact) -> Callable[[torch.Tensor], torch.Tensor]:
    artifact = engine.lower(artifact, 1, 1)
    forward = engine.load(artifact.folder / engine.file_name(1, 1), 1)
    return lambda x: torch.from_numpy(np.concatenate([forward(image[None].numpy()) for image in x]))


@pytest.mark.integration
def test_what_cannot_be_held_is_unsupported(own_answers: tuple[nn.Module, RandomData], tmp_path: Path) -> None:
    network, data = own_answers
    method = configured.method("static", accept_points=0.0, bits=2, first_last_bits=None, add_bits=2, remedy="none")
    with pytest.raises(Unsupported, match="points are lost on validation images even with all layers"):
        method.apply(network, data, method.resolve(EngineSpec()), tmp_path)


@pytest.mark.integration
def test_pretend_images_and_random_weights_judge_nothing(pretend_data: RandomData, tmp_path: Path) -> None:
    method = configured.method("static", accept_points=0.5)
    with pytest.raises(UserError, match="needs trained weights and real images"):
        method.compress(Uneven().eval(), pretend_data, method.resolve(EngineSpec()), tmp_path, SOURCE)
