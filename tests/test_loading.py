"""A loaded network answers as the evaluation did, whatever form an image has.

What was tampered with, or can carry code, is refused.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import shutil
import sys
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import qexp
from qexp.artifact import Artifact
from qexp.data.folder import FolderData
from qexp.files import file_digest
from qexp.loading import Classifier, Prediction
from qexp.measure.candidate import Candidate
from qexp.measure.children import Limits
from qexp.measure.images import EvaluationSet
from qexp.method.artifacts import make_artifact
from qexp.types import UserError
from tests import configured
from tests.engine.support import ANIMAL_ENGINES as ENGINES
from tests.engine.support import engine_named
from tests.tiers import more


@pytest.fixture(scope="module")
def classifier(animal_artifact: Artifact) -> Classifier:
    return qexp.load(animal_artifact.folder, engine="onnxruntime")


@pytest.fixture(scope="module")
def files(animals: FolderData) -> list[Path]:
    """The test images in the order of the decoded ones."""
    return [Path(image.path) for image in animals.files["test"]]


@pytest.fixture
def copied(animal_artifact: Artifact, tmp_path: Path) -> Artifact:
    """The artifact in a folder that may be spoilt."""
    return Artifact.read(Path(shutil.copytree(animal_artifact.folder, tmp_path / "copy")))


def probabilities(found: list[Prediction]) -> np.ndarray:
    return np.array([one.probabilities for one in found])


@pytest.mark.parametrize("name", ["onnxruntime", *more("executorch", "openvino", "eager")])
def test_predictions_are_those_of_the_evaluation(
    name: str, animal_artifact: Artifact, animals: FolderData, files: list[Path], tmp_path: Path
) -> None:
    """The evaluation: a measuring child on the decoded images."""
    engine, cache = engine_named(name), animals.cache_dir
    animals.prepare_evaluation("test", None)
    tests = EvaluationSet.test(animal_artifact, cache)
    assert tests
    candidate = Candidate(animal_artifact, engine, 4 if name == "executorch" else 1, 1, Limits(120, None))
    logits, _ = candidate.logits(tests, 6, tmp_path)
    candidate.close()
    loaded = qexp.load(animal_artifact.folder, engine=name, threads=1, trust=name == "eager")
    assert (loaded.engine, loaded.threads) == (name, 1)
    np.testing.assert_allclose(loaded.logits(files), logits, atol=1e-6, rtol=1e-6)
    exponentials = np.exp(logits.astype(np.float64))
    np.testing.assert_allclose(
        probabilities(loaded.predict(files)), exponentials / exponentials.sum(1, keepdims=True), atol=1e-6
    )
    assert np.ptp(logits, axis=0).min() > 0.01  # images that differ


def test_an_image_in_any_form_gives_the_same(classifier: Classifier, files: list[Path]) -> None:
    plain = files[0]  # RGB
    image = Image.open(plain)
    array = np.asarray(image)
    expected = classifier.predict(plain)
    assert isinstance(expected, Prediction) and 1 / 3 < expected.probability <= 1
    forms: list[Any] = [str(plain), plain.read_bytes(), image, array, array / 255, (array / 255).astype(np.float32)]
    assert [classifier.predict(form) for form in forms] == [expected] * len(forms)
    several = probabilities(classifier.predict(forms))  # a batch may be rounded differently
    np.testing.assert_allclose(several, np.tile(expected.probabilities, (len(forms), 1)), atol=1e-6)
    np.testing.assert_allclose(probabilities(classifier.predict(np.stack([array, array]))), several[:2], atol=1e-6)  # type: ignore[arg-type]


def test_every_mode_is_read_as_pillow_shows_it(classifier: Classifier, files: list[Path]) -> None:
    for file in files:
        assert classifier.predict(Image.open(file)) == classifier.predict(file)
    grey = np.asarray(Image.open(files[2]))
    assert grey.ndim == 2 and classifier.predict(grey) == classifier.predict(grey[..., None]) == classifier.predict(
        files[2]
    )


def test_the_arithmetic_against_numpy_and_onnxruntime_alone(classifier: Classifier, animal_artifact: Artifact) -> None:
    pixels = np.random.default_rng(1).integers(256, size=(70, 16, 16, 3), dtype=np.uint8)  # more than one call
    spec = animal_artifact.data.preprocessing
    x = ((pixels / 255 - np.array(spec.mean)) / np.array(spec.std)).transpose(0, 3, 1, 2).astype(np.float32)
    session = onnxruntime.InferenceSession(animal_artifact.folder / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"x": x})
    shares = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum(1, keepdims=True)
    found = classifier.predict(pixels)
    assert isinstance(found, list) and [one.label for one in found] == [
        ("ant", "bee", "cow")[i] for i in logits.argmax(1)
    ]
    np.testing.assert_allclose(probabilities(found), shares, atol=1e-6)
    ranks = np.argsort(-shares[0])
    assert found[0].top(2) == [(("ant", "bee", "cow")[i], found[0].probabilities[i]) for i in ranks[:2]]
    assert len(found[0].top()) == 3 and classifier.predict([]) == []


@pytest.mark.parametrize("name", ENGINES)
def test_threads_get_their_own_answers(name: str, animal_artifact: Artifact) -> None:
    loaded = qexp.load(animal_artifact.folder, engine=name, trust=True)
    images = np.random.default_rng(2).integers(256, size=(8, 16, 16, 3), dtype=np.uint8)
    expected = [loaded.logits(image) for image in images]
    wrong: list[int] = []

    def ask(which: int) -> None:
        for _ in range(30):
            if not np.array_equal(loaded.logits(images[which]), expected[which]):
                wrong.append(which)

    workers = [threading.Thread(target=ask, args=(which,)) for which in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_what_is_no_thread_safe_engine_is_called_by_one_thread_at_a_time(
    animal_artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, most = 0, 0
    entered = threading.Barrier(2, timeout=1)

    def forward(x: np.ndarray) -> np.ndarray:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        with contextlib.suppress(threading.BrokenBarrierError):
            entered.wait()  # until the other is inside too, which must not be
        inside -= 1
        return np.zeros((len(x), 3), np.float32)

    loaded = qexp.load(animal_artifact.folder, engine="openvino")
    monkeypatch.setattr(loaded, "_forward", forward)
    workers = [threading.Thread(target=loaded.predict, args=(np.zeros((16, 16, 3), np.uint8),)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert most == 1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 16, 16), np.uint8), r"1 to 4 channels.*\[3, 16, 16\]"),
        (np.zeros(16, np.uint8), "1 to 4 channels"),
        (np.zeros((16, 16, 3), np.int64), "not int64"),
        (np.full((16, 16, 3), 2.0), "must lie in 0..1; these lie in 2..2"),
        (np.full((16, 16, 3), np.nan), "must lie in 0..1"),
        (torch.zeros(3, 16, 16), "not a torch.Tensor"),
        ("nowhere.png", "Cannot read the image nowhere.png"),
        (b"no image", "Cannot read the image 8 bytes"),
    ],
)
def test_what_is_no_image_is_told(image: Any, message: str, classifier: Classifier) -> None:
    with pytest.raises(UserError, match=message):
        classifier.predict(image)


def test_a_changed_file_is_refused(copied: Artifact) -> None:
    file = copied.folder / "model.onnx"
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    file.write_bytes(changed)
    with pytest.raises(UserError, match=r"model\.onnx is missing or was changed"):
        qexp.load(copied.folder)


def rewrite(artifact: Artifact, **changes: Any) -> None:
    (artifact.folder / "artifact.json").write_text(json.dumps(replace(artifact, **changes).to_json()))


def test_code_of_others_is_not_imported(copied: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    rewrite(copied, executables=tuple(replace(e, target="evil.Engine") for e in copied.executables))
    with pytest.raises(UserError, match="no part of qexp"):
        qexp.load(copied.folder)
    assert "evil" not in sys.modules


@pytest.mark.parametrize("target", ["qexp.engine.base.os", "qexp.engine.base.find_spec", "qexp.engine.nothing.Engine"])
def test_what_is_no_engine_is_not_called(target: str, copied: Artifact) -> None:
    rewrite(copied, executables=tuple(replace(e, target=target, options={}) for e in copied.executables))
    with pytest.raises(UserError, match="cannot make the engine"):
        qexp.load(copied.folder)


def test_formats_that_can_carry_code_need_trust(
    animal_artifact: Artifact, animals: FolderData, animal_network: torch.nn.Module, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="trust=True"):
        qexp.load(animal_artifact.folder, engine="eager")
    engine = engine_named("torch_ao")
    made = make_artifact(
        configured.method("none"),
        animal_network,
        animals,
        engine.spec,
        {"model": "small", "weights": "1"},
        tmp_path,
    )
    engine.lower(made, 1, 1)
    with pytest.raises(UserError, match=r"model\.ts.*trust=True"):
        qexp.load(made.folder)
    image = np.zeros((16, 16, 3), np.uint8)
    trusted = qexp.load(made.folder, trust=True).logits(image)
    np.testing.assert_allclose(trusted, qexp.load(animal_artifact.folder).logits(image), atol=1e-5)


def test_pickles_are_refused_even_if_trusted(copied: Artifact) -> None:
    file = copied.folder / "model.pt2"
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    pickled = {name: text.replace(b'"use_pickle": false', b'"use_pickle": true') for name, text in parts.items()}
    assert pickled != parts
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in pickled.items():
            archive.writestr(name, content)
    rewrite(copied, files={**copied.files, "model.pt2": file_digest(file)})
    with pytest.raises(UserError, match="pickled objects"):
        qexp.load(copied.folder, engine="eager", trust=True)


def write_run(artifact: Artifact, engine: str, host: str, ms: float, **params: int) -> None:
    folder = artifact.folder / "records"
    folder.mkdir(exist_ok=True)
    record = {
        "params": {"engine": engine, "batch_size": 1, "threads": 1, **params}, "environment": {"host": host},
        "measurements": [{"name": "latency_ms_per_image", "value": ms}],
    }  # fmt: skip
    (folder / f"{len(list(folder.iterdir()))}.json").write_text(json.dumps(record))


def test_the_engine_is_the_fastest_that_was_measured_here(copied: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "here")
    assert qexp.load(copied.folder).engine == "onnxruntime"  # nothing was measured: the first that needs no trust
    (copied.folder / "records").mkdir()
    (copied.folder / "records" / "broken.json").write_text("{")
    write_run(copied, "executorch", "there", 0.1, batch_size=4)
    assert qexp.load(copied.folder).engine == "executorch"
    write_run(copied, "onnxruntime", "here", 3)
    write_run(copied, "openvino", "here", 2)
    assert qexp.load(copied.folder).engine == "openvino"
    assert qexp.load(copied.folder, engine="onnxruntime").engine == "onnxruntime"


def test_an_engine_it_was_not_lowered_for_is_named_with_those_it_was(animal_artifact: Artifact) -> None:
    with pytest.raises(UserError, match="engine=onxruntime.*did you mean 'onnxruntime'"):
        qexp.load(animal_artifact.folder, engine="onxruntime")


def test_artifacts_of_earlier_versions_are_read_and_told_apart(copied: Artifact) -> None:
    values = copied.to_json()
    del values["executables"]
    (copied.folder / "artifact.json").write_text(json.dumps(values))
    assert Artifact.read(copied.folder).executables == ()
    with pytest.raises(UserError, match="qexp benchmark artifact="):
        qexp.load(copied.folder)
    lowered = engine_named("onnxruntime").lower(Artifact.read(copied.folder), 1, 1)  # what that command does
    assert lowered.files == copied.files and qexp.load(copied.folder).engine == "onnxruntime"


def test_an_artifact_with_former_names_is_read(copied: Artifact) -> None:
    file = copied.folder / "artifact.json"
    values = json.loads(file.read_text())
    values["form"] = values.pop("engine_spec")
    del values["data"]["decoder"]
    for executable in values["executables"]:
        del executable["key"]
    file.write_text(json.dumps(values))
    read = Artifact.read(copied.folder)
    assert read.engine_spec == copied.engine_spec and read.files == copied.files
    assert qexp.load(copied.folder, engine="onnxruntime").engine == "onnxruntime"


def test_no_artifact_no_network(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no artifact"):
        qexp.load(tmp_path)


def test_costs_are_those_of_the_import_and_of_the_network(
    animal_artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an engine that takes 60 and 30 MB, and a known time by a clock of its own."""
    clock, taken = [0.0], []
    engine = type(engine_named("onnxruntime"))
    monkeypatch.setattr("qexp.loading.time.perf_counter", lambda: clock[0])

    def takes(seconds: float, mb: int) -> Callable[..., Any]:
        def work(*_: Any) -> Any:
            taken.append(
                np.frombuffer(mmap.mmap(-1, mb * 10**6), np.uint8)
            )  # not of pages that the process has already
            taken[-1][:] = 1
            clock[0] += seconds
            return None

        return work

    monkeypatch.setattr(engine, "import_libraries", takes(2, 60))
    monkeypatch.setattr(engine, "load", takes(0.5, 30))
    loaded = qexp.load(animal_artifact.folder, engine="onnxruntime")
    assert (loaded.import_ms, loaded.load_ms) == (2000, 500)
    assert loaded.import_memory_mb == pytest.approx(60, abs=5) and loaded.memory_mb == pytest.approx(30, abs=5)
