"""Every engine of conf/engine gives the network's own logits.

Its files are whole, are written once, and tell nothing of this machine.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from qexp.artifact import Artifact
from qexp.engine.base import Engine, in_batches_of
from qexp.files import write_json
from qexp.method.base import Method
from qexp.types import Unsupported, UserError, versions
from tests import configured
from tests.engine.support import BATCH, NAMES, engine_named, run
from tests.measure.fake_engines import Writes
from tests.tiers import more

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=[*more("inductor"), *(name for name in NAMES if name != "inductor")])
def engine(request: pytest.FixtureRequest) -> Engine:
    made = engine_named(request.param)
    assert made.name == request.param
    return made


@pytest.fixture(scope="module")
def artifact(engine: Engine, lowered: Callable[[Method, Engine], Artifact]) -> Artifact:
    """The fp32 artifact that the engine wants, lowered for it."""
    return lowered(configured.method("none"), engine)


@pytest.fixture(scope="module")
def file(engine: Engine, artifact: Artifact) -> Path:
    """What the engine loads."""
    return artifact.folder / engine.file_name(BATCH, 1)


@pytest.mark.parametrize("batch", [1, BATCH, 3])
def test_an_engine_gives_the_networks_own_logits(
    batch: int, engine: Engine, artifact: Artifact, small: nn.Module
) -> None:
    x = np.random.default_rng(batch).standard_normal((batch, 3, 16, 16), dtype=np.float32)
    logits = run(engine, artifact, x)
    with torch.no_grad():
        expected = small(torch.from_numpy(x)).numpy()
    assert (logits.shape, logits.dtype) == ((batch, 10), np.float32)
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)  # bfloat16 or tf32 would be wrong by 1e-3
    assert np.ptp(expected) > 0.1  # logits that could not differ would prove nothing


def test_what_a_call_returned_stays_when_the_next_one_comes(engine: Engine, file: Path) -> None:
    call = engine.open(file, 1)
    first = call(np.ones((BATCH, 3, 16, 16), np.float32))
    kept = first.copy()
    assert not np.array_equal(call(np.zeros((BATCH, 3, 16, 16), np.float32)), kept)
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("images", [1, 4, 5, 8, 11])
def test_a_file_for_one_number_of_images_answers_any_number(images: int) -> None:
    seen = []

    def fixed(x: np.ndarray) -> np.ndarray:
        seen.append(x)
        return x.sum((1, 2, 3))[:, None]

    x = np.random.default_rng(0).standard_normal((images, 3, 2, 2), dtype=np.float32)
    np.testing.assert_array_equal(in_batches_of(4, fixed)(x), x.sum((1, 2, 3))[:, None])
    assert {len(part) for part in seen} == {4} and len(seen) == -(-images // 4)
    assert not np.concatenate(seen)[images:].any()


@pytest.mark.parametrize(
    ("name", "batches_differ", "threads_differ"),
    [("eager", False, False), ("onnxruntime", False, False), ("openvino", False, False), ("executorch", True, False),
     ("litert", True, False), ("ncnn", False, False), ("inductor", True, True)],
)  # fmt: skip
def test_what_a_file_is_made_for_is_in_its_name(name: str, batches_differ: bool, threads_differ: bool) -> None:
    made = engine_named(name)
    assert (made.file_name(1, 1) != made.file_name(8, 1)) == batches_differ
    assert (made.file_name(1, 1) != made.file_name(1, 2)) == threads_differ


def test_the_file_an_engine_loads_is_recorded_with_its_digest(artifact: Artifact, file: Path) -> None:
    assert Artifact.read(artifact.folder) == artifact
    assert artifact.files[file.name] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert sorted(p.name for p in artifact.folder.iterdir()) == sorted(["artifact.json", *artifact.files])


def test_lowering_again_changes_nothing(engine: Engine, artifact: Artifact, file: Path) -> None:
    before = file.stat().st_mtime_ns
    stale = replace(
        artifact,
        files={name: sha for name, sha in artifact.files.items() if name == artifact.graph or name != file.name},
    )
    assert engine.lower(artifact, BATCH, 1) == engine.lower(stale, BATCH, 1) == artifact
    assert file.stat().st_mtime_ns == before


def test_only_the_reference_runs_a_simulated_format(engine: Engine, artifact: Artifact) -> None:
    simulated = replace(artifact, simulated=True, label="static int4")
    if engine.runs_simulated:
        assert engine.lower(simulated, BATCH, 1) == simulated
    else:
        with pytest.raises(
            Unsupported, match=f"{engine.name} has no kernels for static int4; engine=eager simulates it"
        ):
            engine.lower(simulated, BATCH, 1)


def test_the_libraries_that_compute_are_named(engine: Engine) -> None:
    assert set(versions(*engine.packages)) > {"python"}


def contents(file: Path) -> bytes:
    """All bytes of a file, its members unpacked where it is an archive."""
    if not zipfile.is_zipfile(file):
        return file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        return b"".join(name.encode() + archive.read(name) for name in archive.namelist())


def traces(file: Path) -> list[str]:
    """What a file tells of the machine it was made on."""
    told = (
        str(ROOT),
        "site-packages",
        str(Path.home()),
        str(Path(torch.__file__).parent),
        tempfile.gettempdir(),
        'stack_trace": "',
    )
    return [word for word in told if word.encode() in contents(file)]


def test_files_tell_nothing_of_this_machine(engine: Engine, artifact: Artifact) -> None:
    for name in artifact.files:
        assert traces(artifact.folder / name) == [], name


@pytest.mark.thorough
@pytest.mark.parametrize("engine", ["inductor"], indirect=True)
def test_machine_code_has_no_tables_for_debuggers(engine: Engine, file: Path) -> None:
    assert b".symtab" in contents(file) and b".debug_line" not in contents(file)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"], indirect=True)
def test_onnx_files_are_valid_and_take_any_batch(engine: Engine, file: Path) -> None:
    onnx.checker.check_model(str(file), full_check=True)
    graph = onnx.load(file).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in (*graph.input, *graph.output)}
    assert list(shapes) == ["x", "logits"]
    assert all(dims[0].dim_param and not dims[0].HasField("dim_value") for dims in shapes.values())
    assert [dim.dim_value for dim in shapes["x"]][1:] == [3, 16, 16] and shapes["logits"][1].dim_value == 10
    assert not any(node.doc_string or node.metadata_props for node in graph.node)


@pytest.fixture
def unlowered(artifact: Artifact, tmp_path: Path) -> Artifact:
    """An artifact that holds nothing but its graph."""
    (tmp_path / "made").mkdir()
    bare = replace(artifact, folder=tmp_path / "made", files={})
    write_json(bare.folder / "artifact.json", bare.to_json())
    return bare


first_engine_only = pytest.mark.parametrize("engine", NAMES[:1], indirect=True)


@first_engine_only
def test_jobs_at_once_write_an_engines_file_once(unlowered: Artifact) -> None:
    Writes.written.clear()
    found: list[Artifact] = []
    threads = [threading.Thread(target=lambda: found.append(Writes().lower(unlowered, BATCH, 1))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Writes.written) == 1
    assert {a.files["model.fake"] for a in found} == {hashlib.sha256(b"lowered").hexdigest()} and len(found) == 3


@first_engine_only
def test_a_lowering_that_fails_leaves_nothing(unlowered: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Engine, artifact: Artifact, graph: Path, file: Path, batch: int, threads: int) -> None:
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Writes, "write", fail)
    with pytest.raises(KeyboardInterrupt):
        Writes().lower(unlowered, BATCH, 1)
    assert os.listdir(unlowered.folder) == ["artifact.json"]
    assert Artifact.read(unlowered.folder).files == {}


REFUSALS = {
    "onnxruntime": ("torch.onnx.export", "torch.onnx cannot export this network"),
    "openvino": ("torch.onnx.export", "torch.onnx cannot export this network"),
    "executorch": ("executorch.exir.to_edge_transform_and_lower", "executorch cannot lower small"),
    "inductor": ("torch._inductor.aot_compile", "inductor cannot compile small"),
}


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "executorch", *more("inductor")], indirect=True)
def test_a_network_that_a_compiler_refuses_is_a_clear_error(
    engine: Engine, artifact: Artifact, unlowered: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, message = REFUSALS[engine.name]

    def refuse(*args: object, **options: object) -> None:
        raise RuntimeError("No function for aten.strange")

    monkeypatch.setattr(compiler, refuse)
    (unlowered.folder / artifact.graph).write_bytes((artifact.folder / artifact.graph).read_bytes())
    with pytest.raises(UserError, match=f"{message}: No function for aten.strange"):
        engine.lower(unlowered, BATCH, 1)
    assert sorted(os.listdir(unlowered.folder)) == ["artifact.json", artifact.graph]
