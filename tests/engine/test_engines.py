"""Every engine of conf/engine gives the network's own logits; its files are whole, written once and tell nothing of this machine."""

from __future__ import annotations

import hashlib
import os
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from qexp.data.random import RandomData
from qexp.engine.base import Engine
from qexp.engine.torch_ao import TorchAo
from qexp.files import write_json
from qexp.method.base import export, make_artifact
from qexp.method.none import NoCompression
from qexp.method.torch_ao import Traced
from qexp.model.resnet import ResNet
from qexp.types import Artifact, Unsupported, UserError
from tests.measure.fake_engines import Writes

ROOT = Path(__file__).parents[2]
NAMES = sorted(file.stem for file in (ROOT / "conf" / "engine").glob("*.yaml") if file.stem != "auto")
SOURCE = {"model": "small", "weights": "random"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def data(folder: Path) -> RandomData:
    made = RandomData(images=64, num_classes=10, name="random", image_size=16, channels=3, cache_dir=str(folder))
    made.open()
    return made


@pytest.fixture(scope="module")
def small() -> nn.Module:
    """A residual network whose batch norms have seen images."""
    torch.manual_seed(0)
    made = ResNet([1, 1], [8, 16], num_classes=10).train()
    with torch.no_grad():
        made(torch.randn(32, 3, 16, 16) * 2 + 0.5)
    return made.eval()


@pytest.fixture(scope="module", params=NAMES)
def engine(request: pytest.FixtureRequest) -> Engine:
    made = instantiate(OmegaConf.load(ROOT / "conf" / "engine" / f"{request.param}.yaml"))
    assert made.name == request.param
    return made


@pytest.fixture(scope="module")
def artifact(engine: Engine, small: nn.Module, data: RandomData, folder: Path) -> Artifact:
    """The fp32 artifact that the engine wants, lowered for it."""
    return engine.lower(make_artifact(NoCompression(torchscript=Traced()), small, data, engine.wants, SOURCE, folder / "artifacts"))


@pytest.mark.parametrize("batch", [1, 3])
def test_an_engine_gives_the_networks_own_logits(batch: int, engine: Engine, artifact: Artifact, small: nn.Module) -> None:
    x = np.random.default_rng(batch).standard_normal((batch, 3, 16, 16), dtype=np.float32)
    engine.import_libraries()
    logits = engine.load(artifact.folder / engine.file, 1)(x)
    with torch.no_grad():
        expected = small(torch.from_numpy(x)).numpy()
    assert (logits.shape, logits.dtype) == ((batch, 10), np.float32)
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    assert np.ptp(expected) > 0.1  # logits that could not differ would prove nothing


def test_the_file_an_engine_loads_is_recorded_with_its_digest(engine: Engine, artifact: Artifact) -> None:
    assert Artifact.read(artifact.folder) == artifact
    assert artifact.files[engine.file] == hashlib.sha256((artifact.folder / engine.file).read_bytes()).hexdigest()
    assert sorted(p.name for p in artifact.folder.iterdir()) == sorted(["artifact.json", *artifact.files])


def test_lowering_again_changes_nothing(engine: Engine, artifact: Artifact) -> None:
    before = (artifact.folder / engine.file).stat().st_mtime_ns
    stale = replace(artifact, files={name: sha for name, sha in artifact.files.items() if name == artifact.graph})
    assert engine.lower(artifact) == engine.lower(stale) == artifact
    assert (artifact.folder / engine.file).stat().st_mtime_ns == before


def test_only_the_reference_runs_a_simulated_format(engine: Engine, artifact: Artifact) -> None:
    simulated = replace(artifact, simulated=True, label="static int4")
    if engine.runs_simulated:
        assert engine.lower(simulated) == simulated
    else:
        with pytest.raises(Unsupported, match=f"{engine.name} has no kernels for static int4; engine=eager simulates it"):
            engine.lower(simulated)


def test_the_libraries_that_compute_are_named(engine: Engine) -> None:
    from qexp.types import versions

    assert set(versions(*engine.packages)) > {"python"}


def contents(file: Path) -> bytes:
    """All bytes of a file, its members unpacked where it is an archive."""
    if not zipfile.is_zipfile(file):
        return file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        return b"".join(name.encode() + archive.read(name) for name in archive.namelist())


def traces(file: Path) -> list[str]:
    """What a file tells of the machine it was made on."""
    told = (str(ROOT), "site-packages", str(Path.home()), str(Path(torch.__file__).parent), 'stack_trace": "')
    return [word for word in told if word.encode() in contents(file)]


def test_files_tell_nothing_of_this_machine(engine: Engine, artifact: Artifact) -> None:
    for name in artifact.files:
        assert traces(artifact.folder / name) == [], name


def test_a_file_that_tells_is_found_out(small: nn.Module, data: RandomData, tmp_path: Path) -> None:
    torch.export.save(export(small, data), tmp_path / "told.pt2")
    assert traces(tmp_path / "told.pt2")


def test_onnx_files_are_valid_and_take_any_batch(engine: Engine, artifact: Artifact) -> None:
    if not engine.file.endswith(".onnx"):
        pytest.skip("no ONNX")
    onnx.checker.check_model(str(artifact.folder / engine.file), full_check=True)
    graph = onnx.load(artifact.folder / engine.file).graph
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
    threads = [threading.Thread(target=lambda: found.append(Writes().lower(unlowered))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Writes.written) == 1
    assert {a.files["model.fake"] for a in found} == {hashlib.sha256(b"lowered").hexdigest()} and len(found) == 3


@first_engine_only
def test_a_lowering_that_fails_leaves_nothing(unlowered: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Engine, artifact: Artifact, file: Path) -> None:
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Writes, "write", fail)
    with pytest.raises(KeyboardInterrupt):
        Writes().lower(unlowered)
    assert os.listdir(unlowered.folder) == ["artifact.json"]
    assert Artifact.read(unlowered.folder).files == {}


def test_unknown_kernels_are_an_error_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="did you mean 'fbgemm'"):
        TorchAo(kernels="fbgem")


def test_a_network_that_onnx_cannot_express_is_a_clear_error(
    unlowered: Artifact, artifact: Artifact, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not engine.file.endswith(".onnx"):
        pytest.skip("no ONNX")

    def refuse(*args: object, **options: object) -> None:
        raise RuntimeError("No ONNX function for aten.strange")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    (unlowered.folder / artifact.graph).write_bytes((artifact.folder / artifact.graph).read_bytes())
    with pytest.raises(UserError, match="torch.onnx cannot export small: No ONNX function"):
        engine.lower(unlowered)
