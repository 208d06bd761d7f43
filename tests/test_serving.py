"""A logged artifact that MLflow downloads or serves over HTTP gives the same predictions.

It never reads a file of the server.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import qexp
from qexp.artifact import Artifact
from qexp.serving import _load_pyfunc, images_of
from qexp.tracking.store import write_record
from qexp.types import UserError
from tests import configured
from tests.tracking.conftest import make_record

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
SECONDS = 120  # to wait for the server at most


@pytest.fixture(scope="module")
def logged(animal_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The URI of MLflow's database, and that of the artifact in a run that was measured on OpenVINO."""
    place = tmp_path_factory.mktemp("mlflow")
    view = configured.tracking("mlflow", uri=f"sqlite:///{place}/mlflow.db", artifacts=str(place / "files"))
    params = {**animal_artifact.params, "engine": "openvino", "batch_size": 1, "threads": 1, "seed": 0}
    record = make_record(artifact=str(animal_artifact.folder), params=params, environment={"host": "elsewhere"})
    write_record(record, place / "sweeps" / "monday" / "0")
    view.log(record, place / "sweeps" / "monday" / "0")
    (run,) = view.client.search_runs([view.experiment_id])
    return view.uri, f"runs:/{run.info.run_id}/artifact"


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pictures") / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(256, size=(20, 24, 3), dtype=np.uint8)).save(file)
    return file


@pytest.mark.thorough
def test_a_run_and_a_registered_version_are_loaded_from_mlflow(
    logged: tuple[str, str], animal_artifact: Artifact, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, uri = logged
    expected = qexp.load(animal_artifact.folder, engine="openvino").predict(picture)
    loaded = qexp.load(uri, tracking_uri=database)
    assert loaded.engine == "openvino" and loaded.predict(picture) == expected  # which that run was measured on
    assert qexp.load(uri.removesuffix("/artifact"), tracking_uri=database).predict(picture) == expected
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    import mlflow

    mlflow.set_tracking_uri(
        database
    )  # Lightning's logger of an earlier test may have set another, which goes before the environment
    mlflow.register_model(uri, "animals")
    assert qexp.load("models:/animals/1").predict(picture) == expected
    with pytest.raises(UserError, match="does not give models:/animals/2.*MLFLOW_TRACKING_URI"):
        qexp.load("models:/animals/2")


@pytest.mark.thorough
def test_what_is_logged_holds_no_pickle_and_no_second_copy(logged: tuple[str, str], animal_artifact: Artifact) -> None:
    (folder,) = Path(logged[0].removeprefix("sqlite:///")).parent.glob("files/*/artifacts/artifact")
    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert names == {"artifact.json", *animal_artifact.files, "MLmodel", "records/record.json"}
    for name in animal_artifact.files:
        assert (folder / name).samefile(animal_artifact.folder / name)


def ask(port: int, request: dict[str, Any]) -> tuple[int, Any]:
    body = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", json.dumps(request).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(body) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture(scope="module")
def server(logged: tuple[str, str]) -> Any:
    """The port of `mlflow models serve`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": logged[0]}
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        logged[1],
        "--env-manager",
        "local",
        "-p",
        str(port),
    ]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, process_group=0
    )
    try:
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping").close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0].decode()
                time.sleep(0.2)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.thorough
def test_mlflow_serves_it(server: int, animal_artifact: Artifact, picture: Path) -> None:
    one = qexp.load(animal_artifact.folder, engine="openvino").predict(picture)
    expected = {"label": one.label, "probability": one.probability, "top": dict(one.top())}
    text, pixels = base64.b64encode(picture.read_bytes()).decode(), np.asarray(Image.open(picture))
    table = {"columns": ["image"], "data": [[text], [text]]}
    requests = (
        {"inputs": [text]},
        {"inputs": [pixels.tolist()]},
        {"instances": [(pixels / 255).tolist()]},
        {"dataframe_split": table},
    )
    for request, count in zip(requests, (1, 1, 1, 2), strict=True):
        status, answer = ask(server, request)
        assert status == 200 and len(answer["predictions"]) == count
        for found in answer["predictions"]:
            assert found["label"] == expected["label"] and found["top"] == pytest.approx(expected["top"], abs=1e-6)
    for bad, reason in (
        (["/etc/hostname"], "base64"),
        (["größe"], "base64"),
        ([[[[300, 0, 0]]]], "uint8 in 0..255"),
        ([[[[0.5, 2.0, 0.0]]]], "0..1"),
    ):
        status, message = ask(server, {"inputs": bad})
        assert status == 400 and reason in message


def test_a_text_is_never_a_path(picture: Path) -> None:
    with pytest.raises(UserError, match="base64"):
        images_of([str(picture)])
    assert images_of([base64.b64encode(b"abc").decode()]) == [b"abc"]


@pytest.mark.thorough
def test_the_servers_environment_says_whom_it_trusts(
    animal_artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config = str(animal_artifact.folder), {"engine": "eager", "threads": 1}
    with pytest.raises(UserError, match="trust=True"):
        _load_pyfunc(folder, config)
    monkeypatch.setenv("QEXP_TRUST", "1")
    served = _load_pyfunc(folder, config)
    assert (served.network.engine, served.network.threads) == ("eager", 1)
    assert served.predict(np.zeros((2, 16, 16, 3), np.int64))[0]["label"] in ("ant", "bee", "cow")
