"""Artifacts of the fake engines, made by hand."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from filelock import FileLock, Timeout

from qexp import nursery
from qexp.artifact import Artifact, EngineSpec, Layer
from qexp.data.decoded import write_part
from qexp.engine.base import Engine
from qexp.files import file_digest, write_json
from qexp.measure import host_lock
from qexp.measure.base import Context
from qexp.measure.candidate import Candidate
from qexp.measure.children import PERSISTENT, Limits
from qexp.measure.images import EvaluationSet
from qexp.types import DataSpec, Preprocessing
from tests.measure.fake_engines import CLASSES

HOW = Preprocessing(3, (8, 8), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
SPEC = DataSpec("fake", tuple("abcdef"), HOW, digest="0" * 64)
LAYERS = (Layer("conv", "conv2d", 100, 9000), Layer("fc", "linear", 300, 1000))
QUANTIZED = (Layer("conv", "conv2d", 100, 9000, "int8", "uint8"), Layer("fc", "linear", 300, 1000, "int8", "uint8"))
IMAGES = 50


def measuring_children() -> set[int]:
    """The ids of all measuring children of this process that live."""
    own = [child for child in psutil.Process().children() if "qexp.measure.child" in words_of(child)]
    nurseries = [child for child in own if nursery.__name__ in words_of(child)]
    forked = [child for each in nurseries for child in each.children()]
    # A nursery with a standard input has become a child itself.
    waiting = [each for each in nurseries if os.readlink(f"/proc/{each.pid}/fd/0") == os.devnull]
    return {child.pid for child in [*own, *forked] if child not in waiting and "qexp.measure.child" in words_of(child)}


def words_of(process: psutil.Process) -> list[str]:
    """The command line of a process, which is empty if it has ended."""
    return [] if process.status() == psutil.STATUS_ZOMBIE else process.cmdline()


def is_free() -> bool:
    """Whether another holder could take the lock now."""
    try:
        with FileLock(host_lock.HOST_LOCK, timeout=0):
            return True
    except Timeout:
        return False


@pytest.fixture(autouse=True)
def own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock of the test's own: whatever else is measured on this machine has no part in it."""
    monkeypatch.setattr(host_lock, "HOST_LOCK", tmp_path / "measure.lock")


@pytest.fixture(autouse=True)
def no_standing_child_outlives_its_test() -> Iterator[None]:
    PERSISTENT.stop()  # those of tests elsewhere
    yield
    PERSISTENT.stop()


@pytest.fixture
def make_artifact(tmp_path: Path) -> Callable[..., Artifact]:
    """Makes artifacts for the fake engines.

    `key` names one, `weights[C,K]` are in its file, and other values are changed as asked.
    """

    def make(key: str = "one", weights: np.ndarray | None = None, **changes: Any) -> Artifact:
        folder = tmp_path / "artifacts" / key
        folder.mkdir(parents=True)
        with (folder / "model.pt2").open("wb") as stream:
            np.save(stream, np.eye(3, CLASSES) if weights is None else weights)
        artifact = Artifact(
            folder, key, EngineSpec(), "model.pt2", "tiny", "none", 32, "fp32", SPEC, LAYERS, parameters=450,
            macs=10000, packed_bytes=1800,
            reference="one", files={"model.pt2": file_digest(folder / "model.pt2")}, source={}, versions={},
        )  # fmt: skip
        artifact = replace(artifact, **changes)
        write_json(folder / "artifact.json", artifact.to_json())
        return Artifact.read(folder)

    return make


@pytest.fixture
def make_candidate(make_artifact: Callable[..., Artifact]) -> Iterator[Callable[..., Candidate]]:
    """An engine on an artifact of its own, or on the one given, in a child that ends with the test."""
    made: list[Candidate] = []

    def make(
        engine: Engine, artifact: Artifact | None = None, batch: int = 2, persistent: bool = False, **limits: float
    ) -> Candidate:
        artifact = artifact or make_artifact(f"artifact{len(made)}")
        within = Limits(**{"timeout_s": 120, "memory_mb": None, **limits})  # type: ignore[arg-type]
        made.append(Candidate(artifact, engine, batch, 1, within, persistent))
        return made[-1]

    yield make
    for candidate in made:
        candidate.close()


@pytest.fixture
def make_context(make_candidate: Callable[..., Candidate], tmp_path: Path) -> Callable[..., Context]:
    """The context of one engine, beside others as the baseline and the best fp32 engine if these are given."""

    def make(
        engine: Engine,
        baseline: Engine | None = None,
        best_fp32: Engine | None = None,
        artifact: Artifact | None = None,
    ) -> Context:
        others = [make_candidate(other) if other else None for other in (baseline, best_fp32)]
        return Context(make_candidate(engine, artifact), others[0], None, tmp_path / "cache", others[1])

    return make


@pytest.fixture
def images() -> np.ndarray:
    """images[N,H,W,C] uint8, each of one colour of its own."""
    rng = np.random.default_rng(7)
    return (rng.integers(256, size=(IMAGES, 1, 1, 3)) + np.zeros((1, 8, 8, 1))).astype(np.uint8)


@pytest.fixture
def colours(images: np.ndarray) -> np.ndarray:
    """The images' normalised mean colours[N,C] in float64, which `Scores` multiplies with its weights."""
    return (images[:, 0, 0, :] / 255.0 - HOW.mean) / HOW.std


@pytest.fixture
def weights() -> list[np.ndarray]:
    """Two linear classifiers[C,K] that agree on some images."""
    rng = np.random.default_rng(3)
    first = rng.standard_normal((3, CLASSES))
    return [first, first + 1.5 * rng.standard_normal((3, CLASSES))]


@pytest.fixture
def tests_of(images: np.ndarray, tmp_path: Path) -> Callable[[Artifact], EvaluationSet | None]:
    """The test set of an artifact: the images above, with labels that take turns."""
    folder = tmp_path / "cache" / "data" / SPEC.cache_name
    folder.mkdir(parents=True)
    write_part(folder, "test", images, np.arange(IMAGES) % CLASSES)
    (folder / SPEC.evaluation_file("test", None)).write_text(json.dumps([*range(IMAGES)]))
    return lambda artifact: EvaluationSet.test(artifact, tmp_path / "cache")
