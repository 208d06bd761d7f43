"""A new engine is one class and one yaml: it lowers, loads and is measured, whether weights are coded or not."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn

from qexp.artifact import Artifact
from qexp.coded_file import decoded, is_coded
from qexp.data.decoded import write_part
from qexp.data.random import RandomData
from qexp.engine.base import Engine
from qexp.files import file_digest, write_json
from qexp.measure.candidate import Candidate, Limits
from qexp.measure.images import EvaluationSet
from qexp.method.base import Method
from qexp.method.graph import export, save_graph
from qexp.places import CONF
from qexp.types import Unsupported
from tests import configured
from tests.engine.minimal_engine import OnnxReference
from tests.engine.support import BATCH, engine_named, error
from tests.tiers import more

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def pruned(small: nn.Module) -> nn.Module:
    """The network with most weights of its layers zero."""
    made = copy.deepcopy(small)
    with torch.no_grad():
        for weight in (p for p in made.parameters() if p.ndim > 1):
            weight.mul_(weight.abs() > weight.abs().quantile(0.6))
    return made


@pytest.fixture(params=[True, *more(False)], ids=["coded", "plain"])
def artifact(
    request: pytest.FixtureRequest,
    pruned: nn.Module,
    data: RandomData,
    lowered: Callable[[Method, Engine], Artifact],
    tmp_path: Path,
) -> Artifact:
    """An artifact that holds the graph of the pruned network, and nothing else."""
    like = lowered(configured.method("none"), engine_named("eager"))
    folder = tmp_path / "artifact"
    folder.mkdir()
    save_graph(export(pruned, data), folder / like.graph, coded=request.param)
    files = {like.graph: file_digest(folder / like.graph)}
    made = replace(like, folder=folder, files=files, executables=(), coded=request.param)
    write_json(folder / "artifact.json", made.to_json())
    return Artifact.read(folder)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """What Hydra makes of the engine's yaml, which lies in a folder of its own."""
    (tmp_path / "conf" / "engine").mkdir(parents=True)
    yaml = tmp_path / "conf" / "engine" / "onnx_reference.yaml"
    yaml.write_text("_target_: tests.engine.minimal_engine.OnnxReference\n")
    searched = f"hydra.searchpath=[file://{tmp_path / 'conf'}]"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("compress", ["model=resnet8", "data=digits", "engine=onnx_reference", searched])
    return instantiate(config.engine)


def test_it_gives_the_networks_own_logits_in_a_child_too(
    engine: Engine, artifact: Artifact, pruned: nn.Module, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(5).integers(256, size=(2 * BATCH, 16, 16, 3), dtype=np.uint8)
    how = artifact.data.preprocessing
    mean, std = np.array(how.mean), np.array(how.std)
    x = ((pixels / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    with torch.no_grad():
        expected = pruned(torch.from_numpy(x)).numpy()
    made = engine.lower(artifact, BATCH, 1)
    engine.check_machine()
    engine.import_libraries()
    file = made.folder / engine.file_name(BATCH, 1)
    assert error(engine.open(file, 1)(x), expected) < 1e-5

    write_part(tmp_path, "test", pixels, np.zeros(len(pixels), np.int64))
    (tmp_path / "chosen.json").write_text(json.dumps([*range(len(pixels))]))
    tests = EvaluationSet("drawn here", tmp_path, "test", tmp_path / "chosen.json", meaningful=False)
    candidate = Candidate(made, engine, BATCH, 1, Limits(120, None))
    try:
        logits, _ = candidate.logits(tests, BATCH, tmp_path)
        started = candidate.start()
        samples = candidate.window(3, 0)
    finally:
        candidate.close()
    assert error(logits, expected) < 1e-5
    assert started["load_ms"] > 0 and started["device_memory_mb"] is None and len(samples) == 3


@pytest.mark.thorough
def test_its_file_is_coded_where_the_graph_is(engine: Engine, artifact: Artifact) -> None:
    made = engine.lower(artifact, BATCH, 1)
    file = made.folder / "reference.onnx"
    assert is_coded(file) == artifact.coded and made.files[file.name] == file_digest(file)
    with decoded(file) as plain:
        onnx.checker.check_model(str(plain), full_check=True)
    assert sorted(os.listdir(made.folder)) == ["artifact.json", "model.pt2", "reference.onnx"]
    stored = json.loads((made.folder / "artifact.json").read_text())["executables"]
    assert [(e["engine"], e["options"], e["file"]) for e in stored] == [("onnx_reference", {}, "reference.onnx")]


def test_the_defaults_are_safe() -> None:
    engine = OnnxReference()
    assert engine.modules == engine.packages == ("onnx",)
    assert engine.carries_code and not engine.thread_safe and not engine.runs_simulated
    assert engine.standalone() is None and engine.device_memory_mb() is None


def test_an_engine_without_a_format_of_its_own_says_so(artifact: Artifact) -> None:
    class Reads(OnnxReference):
        file = "model.ts"
        write = Engine.write

    with pytest.raises(Unsupported, match=r"onnx_reference runs model\.ts, which .* does not hold"):
        Reads().lower(artifact, BATCH, 1)
    assert sorted(os.listdir(artifact.folder)) == ["artifact.json", "model.pt2"]
