"""The C++ example of a deployment is built, and predicts as qexp does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import qexp
from qexp.artifact import Artifact
from qexp.data.folder import FolderData
from qexp.deploy.__main__ import main as deploy
from qexp.method.artifacts import make_artifact
from tests import configured
from tests.engine.support import engine_named
from tests.tiers import more

pytestmark = pytest.mark.integration

HAS_NCNN = "ncnn_DIR" in os.environ or any(Path("/usr").glob("lib*/**/cmake/ncnn"))
CASES = [("litert", 1), *more(("litert", 4)), ("ncnn", 1)]


@pytest.fixture
def integers(animals: FolderData, animal_network: object, tmp_path: Path) -> Callable[[str], Artifact]:
    """The network in int8, made for an engine."""

    def make(engine: str) -> Artifact:
        source = {"model": "small", "weights": "0123"}
        method, spec = configured.method("static", remedy="none"), engine_named(engine).spec
        return make_artifact(method, animal_network, animals, spec, source, tmp_path / "artifacts")  # type: ignore[arg-type]

    return make


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(3).integers(256, size=(16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.ppm")
    return tmp_path / "a.ppm"


def output(*words: object, cwd: Path) -> str:
    done = subprocess.run([*map(str, words)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(not shutil.which("cmake"), reason="needs CMake")
@pytest.mark.parametrize(("engine", "batch"), CASES)
def test_it_is_built_and_predicts_as_qexp_does(
    engine: str, batch: int, integers: Callable[[str], Artifact], picture: Path, tmp_path: Path
) -> None:
    if engine == "ncnn" and not HAS_NCNN:
        pytest.skip("needs ncnn's library for C++: Debian's libncnn-dev, or a build that ncnn_DIR names")
    artifact, to = integers(engine), tmp_path / "dist"
    assert deploy([f"artifact={artifact.folder}", f"engine={engine}", f"batch_size={batch}", f"to={to}"]) == 0
    assert len((to / "classify.cpp").read_text().splitlines()) < 60
    output("cmake", "-B", "build", f"-DPython3_EXECUTABLE={sys.executable}", cwd=to)
    output("cmake", "--build", "build", cwd=to)
    found = output("build/classify", picture, cwd=to).splitlines()

    prediction = qexp.load(artifact.folder, engine=engine, threads=1).predict(str(picture))
    expected = [f"{label} {share:.4f}" for label, share in prediction.top()]  # type: ignore[union-attr]
    assert found == ["\t".join([str(picture), *expected])]


@pytest.mark.skipif(not shutil.which("cmake"), reason="needs CMake")
def test_it_refuses_a_picture_of_another_size(integers: Callable[[str], Artifact], tmp_path: Path) -> None:
    to = tmp_path / "dist"
    assert deploy([f"artifact={integers('litert').folder}", "engine=litert", f"to={to}"]) == 0
    output("cmake", "-B", "build", f"-DPython3_EXECUTABLE={sys.executable}", cwd=to)
    output("cmake", "--build", "build", cwd=to)
    Image.new("RGB", (20, 16)).save(tmp_path / "wide.ppm")
    done = subprocess.run([to / "build" / "classify", tmp_path / "wide.ppm"], capture_output=True, text=True)
    assert done.returncode == 2 and "is no binary PPM of 16x16 pixels" in done.stderr
