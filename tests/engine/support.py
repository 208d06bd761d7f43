"""What the tests of engines share.

These are the engines of conf/engine, errors relative to the largest logit, and what OpenVINO executes.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from qexp.artifact import Artifact
from qexp.engine.base import Engine
from qexp.places import CONF

BATCH = 2  # images per call of the files that are made for one number
ANIMAL_ENGINES = ("onnxruntime", "openvino", "executorch", "eager")  # of the fixture animal_artifact
NAMES = sorted(
    file.stem for file in (CONF / "engine").glob("*.yaml") if file.stem not in ("auto", "tensorrt")
)  # tensorrt needs its hardware


def engine_named(name: str) -> Engine:
    return instantiate(OmegaConf.load(CONF / "engine" / f"{name}.yaml"))


def run(engine: Engine, artifact: Artifact, x: np.ndarray) -> np.ndarray:
    """Logits[B,K] of the lowered artifact on one thread."""
    engine.import_libraries()
    return engine.open(artifact.folder / engine.file_name(BATCH, 1), 1)(x)


def graph_logits(artifact: Artifact, x: np.ndarray) -> np.ndarray:
    """What the artifact's graph computes in torch: the reference for every engine."""
    with torch.no_grad():
        return torch.export.load(artifact.folder / artifact.graph).module()(torch.from_numpy(x)).numpy()


def error(logits: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference over the largest expected logit."""
    return float(np.abs(logits - expected).max() / np.abs(expected).max())


def openvino_layers(
    engine: Engine, artifact: Artifact, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> Counter[tuple[str, str]]:
    """(kind, precision) of the layers with weights that OpenVINO executes, as the engine loads the artifact."""
    import openvino

    compiled = []
    compile_model = openvino.Core.compile_model

    def recorded(*arguments: Any) -> Any:
        compiled.append(compile_model(*arguments))
        return compiled[0]

    with monkeypatch.context() as patch:
        patch.setattr(openvino.Core, "compile_model", recorded)
        run(engine, artifact, x)
    infos = [operator.get_rt_info() for operator in compiled[0].get_runtime_model().get_ops()]
    layers = ((info["layerType"].astype(str), info["runtimePrecision"].astype(str)) for info in infos)
    return Counter(layer for layer in layers if layer[0] in ("Convolution", "FullyConnected"))
