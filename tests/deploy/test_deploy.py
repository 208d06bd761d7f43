"""A deployment runs where there is nothing but its engine and NumPy.

What it measures there joins the comparison.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import qexp
from qexp.artifact import Artifact
from qexp.deploy.__main__ import main as deploy
from qexp.measure.timing import Rules
from qexp.records import Measurement, Record
from qexp.tracking.__main__ import main as tracking
from qexp.tracking.imported import import_record
from qexp.tracking.store import read_record, read_records, write_record
from qexp.types import UserError
from tests.tiers import more
from tests.tracking.conftest import make_record

pytestmark = pytest.mark.integration

ALONE = """
import runpy, sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {blocked!r} else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
sys.argv[:] = {argv!r}
runpy.run_path({argv!r}[0], run_name="__main__")
"""
NOT_THERE = {"qexp", "torch", "hydra", "omegaconf", "mlflow", "psutil", "scipy", "pandas", "onnx", "filelock", "rich"}
QUICK = {
    "windows": 7,
    "calls": 3,
    "window_s": 0.001,
    "warmup_calls": 2,
    "warmup_s": 0.001,
    "budget_s": 5,
    "resolution": 0.0,
}


def alone(folder: Path, *argv: str, blocked: set[str] = NOT_THERE) -> str:
    """Return what a script of a deployment prints where the packages `blocked` are not there.

    Some engines need torch themselves.
    """
    code = ALONE.format(blocked=blocked, argv=list(argv))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "PYTHONPATH": str(folder)
    }
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def outputs(animal_artifact: Artifact, tmp_path: Path) -> Path:
    """The artifact below outputs/artifacts, with one record of its own in a sweep.

    Another record is of an earlier run on another engine.
    """
    folder = tmp_path / "outputs" / "artifacts" / animal_artifact.key
    shutil.copytree(animal_artifact.folder, folder)
    where = {
        "_target_": "qexp.tracking.mlflow_view.MlflowView",
        "uri": f"sqlite:///{tmp_path}/mlflow.db",
        "experiment": "qexp",
        "log_artifacts": True,
    }
    values = (("top1", 0.75, "fraction"), ("size_mb", 0.5, "MB"), ("latency_ms", 9.0, "ms"), ("speedup", 3.0, "x"))
    own = make_record(
        artifact=str(folder), environment={"host": "workstation", "cpu": "fast"}, created="2026-05-01T00:00:00+00:00",
        params={**animal_artifact.params, "engine": "onnxruntime", "batch_size": 1, "threads": 1, "seed": 0},
        config={"method": {"bits": 8}, "tracking": {**where, "artifacts": str(tmp_path / "files")}},
        measurements=tuple(Measurement(*value) for value in values),
    )  # fmt: skip
    other = replace(
        own, params={**own.params, "engine": "openvino"}, measurements=(Measurement("top1", 0.25, "fraction"),)
    )
    for job, record in (("0", own), ("1", other)):
        write_record(record, tmp_path / "outputs" / "sweeps" / "monday" / job)
        write_record(record, folder / "records")
        (folder / "records" / "record.json").rename(folder / "records" / f"{job}.json")
    return tmp_path / "outputs"


@pytest.fixture
def artifact(outputs: Path) -> Artifact:
    return Artifact.read(next((outputs / "artifacts").iterdir()))


@pytest.fixture
def dist(artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Deployed for onnxruntime; its benchmark takes few windows."""
    monkeypatch.setattr("qexp.deploy.__main__.rules", lambda: Rules(**QUICK))
    assert deploy([f"artifact={artifact.folder}", "engine=onnxruntime", f"to={tmp_path / 'dist'}"]) == 0
    return tmp_path / "dist"


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """A JPEG of another size, and an array."""
    rng = np.random.default_rng(3)
    Image.fromarray(rng.integers(256, size=(30, 20, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    np.save(tmp_path / "b.npy", rng.integers(256, size=(16, 16, 3), dtype=np.uint8))
    return [str(tmp_path / "a.jpg"), str(tmp_path / "b.npy")]


def expected(artifact: Artifact, engine: str, pictures: list[str]) -> list[str]:
    """What infer.py shall print."""
    network = qexp.load(artifact.folder, engine=engine, trust=True, threads=1)
    found = [network.predict(pictures[0]), network.predict(np.load(pictures[1]))]
    tops = [[f"{label} {share:.4f}" for label, share in one.top()] for one in found]  # type: ignore[union-attr]
    return ["\t".join([file, *top]) for file, top in zip(pictures, tops, strict=True)]


def test_it_predicts_as_qexp_does_without_it_and_without_torch(
    dist: Path, artifact: Artifact, pictures: list[str]
) -> None:
    assert alone(dist, "infer.py", *pictures).splitlines() == expected(artifact, "onnxruntime", pictures)
    arrays = alone(dist, "infer.py", pictures[1], blocked=NOT_THERE | {"PIL"})
    assert arrays.splitlines() == expected(artifact, "onnxruntime", pictures)[1:]


@pytest.mark.parametrize("engine", ["litert", "ncnn", *more("executorch", "openvino", "eager")])
def test_other_engines(engine: str, artifact: Artifact, pictures: list[str], tmp_path: Path) -> None:
    assert deploy([f"artifact={artifact.folder}", f"engine={engine}", f"to={tmp_path / 'dist'}"]) == 0
    blocked = (
        {"qexp", "hydra", "omegaconf", "mlflow"} if engine in ("executorch", "eager") else NOT_THERE
    )  # these two need torch, and what that needs
    printed = alone(tmp_path / "dist", "infer.py", *pictures, blocked=blocked)
    assert printed.splitlines() == expected(artifact, engine, pictures)


def test_the_folder_is_small_and_says_what_was_measured(dist: Path, artifact: Artifact) -> None:
    names = {file.name for file in dist.iterdir()}
    assert names == {
        "model.onnx", "labels.json", "preprocessing.json", "deployment.json", "infer.py", "engine.py", "benchmark.py",
        "pixels.py",
        "timing.py", "disturbance.py", "machine.py", "requirements.txt", "README.md",
    }  # fmt: skip
    assert sum((dist / name).stat().st_size for name in names - {"model.onnx"}) < 40_000
    assert len((dist / "infer.py").read_text().splitlines()) < 60
    assert (dist / "model.onnx").read_bytes() == (artifact.folder / "model.onnx").read_bytes()
    assert (dist / "model.onnx").stat().st_nlink == 1  # changing it there changes no artifact
    assert json.loads((dist / "labels.json").read_text()) == ["ant", "bee", "cow"]
    readme = (dist / "README.md").read_text()
    assert (
        "| workstation, fast | 1 | 1 | 75.00 | – | 0.500 | 9.00 | – | – | – | 2026-05-01 |" in readme
        and readme.count("workstation") == 1
    )
    needed = (dist / "requirements.txt").read_text().splitlines()
    assert [line.split("==")[0].split()[0] for line in needed] == ["onnxruntime", "numpy", "pillow"]


def measured(dist: Path, host: str = "board 7") -> Path:
    """What its benchmark.py wrote, as if on another machine."""
    assert " ms per call, 95 % interval " in alone(dist, "benchmark.py", "threads=1", "batch_size=2")
    values = json.loads((dist / "record.json").read_text())
    values["environment"]["host"] = host
    (dist / "record.json").write_text(json.dumps(values))
    return dist / "record.json"


def test_what_it_measures_are_the_statistics_of_its_samples(dist: Path) -> None:
    record = read_record(measured(dist))
    samples = next(m.samples for m in record.measurements if m.name == "latency_ms")
    found = record.metrics
    assert len(samples) >= 7 * 3 and record.params["batch_size"] == 2 and record.params["threads"] == 1
    assert found["latency_p50_ms"] == pytest.approx(statistics.median(samples))
    assert found["latency_std_ms"] == pytest.approx(statistics.stdev(samples))
    assert found["latency_low_ms"] <= found["latency_ms"] <= found["latency_high_ms"]
    assert (
        found["throughput_ips"] == pytest.approx(2000 / found["latency_ms"])
        and found["latency_ms_per_image"] == found["latency_ms"] / 2
    )
    assert (
        min(found[name] for name in ("load_ms", "first_call_ms")) > 0
        and record.environment["versions"]["numpy"] == np.__version__
    )
    assert record.environment["cores"] and record.environment["memory_gb"] > 0.1  # without psutil


def test_its_record_joins_the_sweep_with_the_accuracy_of_the_same_file(dist: Path, outputs: Path, capsys: Any) -> None:
    file = measured(dist)
    for _ in range(2):  # the second time changes nothing
        assert tracking(["import", str(file), f"outputs={outputs}"]) == 0
    assert "on board 7" in capsys.readouterr().out
    own, other, added = read_records(outputs / "sweeps" / "monday")
    assert added.environment["host"] == "board 7" and added.params == {**own.params, "batch_size": 2}
    carried = {"top1": 0.75, "size_mb": 0.5}  # not the latency, nor what is relative to it
    assert {name: added.metrics[name] for name in carried} == carried and "speedup" not in added.metrics
    assert added.metrics["latency_ms"] == read_record(file).metrics["latency_ms"]
    assert "workstation" in added.notes["carried"] and added.config["method"] == {"bits": 8}
    from mlflow.tracking import MlflowClient

    client = MlflowClient(own.config["tracking"]["uri"])
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments() if e.name == "qexp"])
    assert run.data.tags["qexp.place"].startswith("monday/board_7-") and run.data.metrics["top1"] == 0.75
    artifact = Artifact.read(Path(added.artifact))
    assert deploy([f"artifact={artifact.folder}", "engine=onnxruntime", f"to={dist}"]) == 0
    assert "| board 7, " in (dist / "README.md").read_text()


def test_another_file_has_no_accuracy(dist: Path, outputs: Path) -> None:
    file = measured(dist)
    values = json.loads(file.read_text())
    values["config"]["deployment"]["sha256"] = "0" * 64
    file.write_text(json.dumps(values))
    record, folder = import_record(file, outputs)
    assert (
        "top1" not in record.metrics
        and "size_mb" not in record.metrics
        and "not those of this file" in record.notes["top1"]
    )
    assert folder.parent.name == "device-board_7"
    shutil.rmtree(outputs / "artifacts")
    assert "not there" in import_record(file, outputs)[0].notes["top1"]


def test_nothing_of_a_foreign_record_is_run_or_leaves_its_place(dist: Path, outputs: Path) -> None:
    file = measured(dist, host="../../evil")
    values = json.loads(file.read_text())
    values["config"]["tracking"] = {"_target_": "os.system", "command": "false"}
    values["texts"] = {"../evil.txt": "evil"}
    values["sweep"] = "../../evil"
    file.write_text(json.dumps(values))
    record, folder = import_record(file, outputs)
    assert record.config["tracking"]["_target_"] == "qexp.tracking.mlflow_view.MlflowView"
    assert folder.resolve().is_relative_to((outputs / "sweeps" / "monday").resolve()) and not record.texts
    values["config"]["deployment"]["artifact"] = f"../artifacts/{record.params['model']}"
    file.write_text(json.dumps(values))
    record, folder = import_record(file, outputs)
    assert record.artifact == "" and "tracking" not in record.config and folder.parent.parent == outputs / "sweeps"


def spoilt(**changes: Any) -> Record:
    deployment = {"artifact": "a", "file": "f", "sha256": "s"}
    params = {"model": "vgg", "label": "static int8", "engine": "e", "batch_size": 1, "threads": 1}
    good = make_record(config={"deployment": deployment}, environment={"host": "board"}, params=params)
    return replace(good, **{"measurements": (Measurement("latency_ms", 1.0, "ms"),), **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {}},
        {"environment": {}},
        {"environment": {"host": ""}},
        {"status": "failed"},
        {"measurements": ()},
        {"measurements": (Measurement("latency_ms", float("nan"), "ms"),)},
        {"measurements": (Measurement("latency_ms", 1.0, "ms"), Measurement("top1", 1.0, "fraction"))},
        {"params": {"model": "vgg", "label": "int8", "engine": "e", "batch_size": "1", "threads": 1}},
    ],
)
def test_what_is_no_record_of_a_device_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    write_record(spoilt(), tmp_path / "good")
    assert import_record(tmp_path / "good" / "record.json", tmp_path)[0].metrics == {"latency_ms": 1.0}
    write_record(spoilt(**changes), tmp_path / "bad")
    with pytest.raises(UserError, match="no record of a deployment"):
        import_record(tmp_path / "bad" / "record.json", tmp_path)


def test_a_folder_with_anything_else_is_refused(artifact: Artifact, tmp_path: Path, capsys: Any) -> None:
    to = tmp_path / "mine"
    to.mkdir()
    (to / "thesis.tex").write_text("years of work")
    assert deploy([f"artifact={artifact.folder}", "engine=onnxruntime", f"to={to}"]) == 1
    assert "no deployment of qexp" in capsys.readouterr().err
    assert [file.name for file in to.iterdir()] == ["thesis.tex"]


def test_an_older_deployment_is_replaced_and_what_was_added_stays(dist: Path, artifact: Artifact) -> None:
    (dist / "record.json").write_text("measured here")
    assert deploy([f"artifact={artifact.folder}", "engine=executorch", f"to={dist}"]) == 0
    names = {file.name for file in dist.iterdir()}
    assert {"model-batch4.pte", "record.json"} < names and "model.onnx" not in names


@pytest.mark.thorough
def test_an_engine_it_was_not_lowered_for_is_made_ready(artifact: Artifact, tmp_path: Path) -> None:
    deployed = [
        f"artifact={artifact.folder}",
        "engine=executorch",
        "batch_size=2",
        "threads=1",
        f"to={tmp_path / 'two'}",
    ]
    assert deploy(deployed) == 0 and (tmp_path / "two" / "model-batch2.pte").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["engine=onxruntime"], "did you mean 'onnxruntime'"),
        (["engine=torch_ao"], "was made for other kernels"),
        (["engine=executorch", "batch_size=0"], "batch_size=0 is out of range"),
    ],
)
def test_what_cannot_be_is_told(
    words: list[str], message: str, artifact: Artifact, tmp_path: Path, capsys: Any
) -> None:
    assert deploy([f"artifact={artifact.folder}", f"to={tmp_path / 'dist'}", *words]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "dist").exists()


def test_the_command_line_is_explained(capsys: Any) -> None:
    assert deploy(["artifact=a"]) == deploy(["artifact=a", "engine=b", "to=c", "typo=d"]) == 2
    assert "qexp deploy artifact=FOLDER" in capsys.readouterr().err


@pytest.mark.network
@pytest.mark.skipif("QEXP_NETWORK" not in os.environ, reason="needs a package registry: set QEXP_NETWORK=1")
def test_a_fresh_environment(dist: Path, artifact: Artifact, pictures: list[str], tmp_path: Path) -> None:
    """What requirements.txt says is enough."""
    fresh = tmp_path / "fresh"
    subprocess.run(["uv", "venv", "-q", "-p", sys.executable, str(fresh)], check=True)
    python = fresh / "bin" / "python"
    subprocess.run(["uv", "pip", "install", "-q", "-p", str(python), "-r", str(dist / "requirements.txt")], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def fresh_run(*words: str) -> str:
        return subprocess.run(
            [python, *words], cwd=dist, env=environment, capture_output=True, text=True, check=True
        ).stdout

    assert "torch" not in fresh_run("-c", "import importlib.metadata as m; print([d.name for d in m.distributions()])")
    assert fresh_run("infer.py", *pictures).splitlines() == expected(artifact, "onnxruntime", pictures)
    assert " ms per call" in fresh_run("benchmark.py") and read_record(dist / "record.json").status == "finished"
