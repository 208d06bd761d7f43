"""Artifacts of the fake engines, made by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qexp.engine.base import Engine
from qexp.files import file_digest, write_json
from qexp.measure import base
from qexp.measure.base import Bench, Limits, Subject
from qexp.types import Artifact, DataSpec, Layer
from tests.measure.fake_engines import CLASSES

SPEC = DataSpec("fake", tuple("abcdef"), 3, 8, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), digest="0" * 64)
LAYERS = (Layer("conv", "conv2d", 100, 9000), Layer("fc", "linear", 300, 1000))


@pytest.fixture(autouse=True)
def own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock of the test's own: whatever else is measured on this machine has no part in it."""
    monkeypatch.setattr(base, "HOST_LOCK", tmp_path / "measure.lock")


@pytest.fixture
def make_artifact(tmp_path: Path) -> Callable[..., Artifact]:
    """An artifact for the fake engines; `key` names it, `weights`[C,K] are in its file, other values are changed as asked."""

    def make(key: str = "one", weights: np.ndarray | None = None, **changes: Any) -> Artifact:
        folder = tmp_path / "artifacts" / key
        folder.mkdir(parents=True)
        with (folder / "model.fake").open("wb") as stream:
            np.save(stream, np.eye(3, CLASSES) if weights is None else weights)
        artifact = Artifact(
            folder, key, "fake", "model.fake", "tiny", "none", 32, "fp32", SPEC, LAYERS, parameters=450, macs=10000, packed_bytes=1800,
            reference="one", files={"model.fake": file_digest(folder / "model.fake")}, source={}, versions={},
        )  # fmt: skip
        artifact = replace(artifact, **changes)
        write_json(folder / "artifact.json", artifact.to_json())
        return Artifact.read(folder)

    return make


@pytest.fixture
def make_subject(make_artifact: Callable[..., Artifact]) -> Iterator[Callable[..., Subject]]:
    """An engine on an artifact of its own, or on the one given, in a child that ends with the test."""
    made: list[Subject] = []

    def make(engine: Engine, artifact: Artifact | None = None, batch: int = 2, **limits: float) -> Subject:
        artifact = artifact or make_artifact(f"artifact{len(made)}")
        made.append(Subject(artifact, engine, batch, 1, Limits(**{"timeout_s": 120, "memory_mb": None, **limits})))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for subject in made:
        subject.close()


@pytest.fixture
def make_bench(make_subject: Callable[..., Subject], tmp_path: Path) -> Callable[..., Bench]:
    """A bench of one engine, beside another as the baseline if one is given."""

    def make(engine: Engine, baseline: Engine | None = None, artifact: Artifact | None = None) -> Bench:
        return Bench(make_subject(engine, artifact), make_subject(baseline) if baseline else None, None, tmp_path / "cache")

    return make
