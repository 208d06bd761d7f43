"""The main job as a user runs it: train what is missing, compress, measure, track, print one table."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient
from PIL import Image

import benchmark
import compress

QUICK = [
    "measure.latency.windows=2", "measure.latency.calls=2", "measure.latency.window_s=0.01", "measure.latency.warmup_calls=2",
    "measure.latency.warmup_s=0.01", "threads=1",
]  # fmt: skip
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes that differ in brightness, 16x16 grey: 40 images to train, 20 to test each."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 20)):
        for label, name in enumerate(("dark", "light")):
            folder = tmp_path / "pictures" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(100 * label, 120 + 100 * label, (16, 16), np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "pictures"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Call an entry script's main with the given overrides, outputs below tmp_path; exit code and everything printed."""

    def call(*overrides: str, script: Any = compress) -> tuple[int, str]:
        outputs = [] if any(o.startswith("outputs=") for o in overrides) else [f"outputs={tmp_path / 'outputs'}"]
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *overrides, *outputs])
        code: Any = 0
        try:
            script.main()
        except SystemExit as end:
            code = end.code
        out, err = capfd.readouterr()
        message = code if isinstance(code, str) else ""  # sys.exit prints a text only when the interpreter ends
        return (code if isinstance(code, int) else 1), out + err + message

    return call


def small(images: Path, *more: str) -> list[str]:
    data = ["data=folder", f"data.root={images}", "data.image_size=16", "data.channels=1", "data.calibration_images=16"]
    return [*data, "model=resnet8", "recipe.epochs=1", "recipe.batch_size=8", "trainer=cpu", *QUICK, *more]


def records(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(f.read_text()) for f in sorted((tmp_path / "outputs" / "sweeps").rglob("record.json"))]


def metrics(record: dict[str, Any]) -> dict[str, float]:
    return {m["name"]: m["value"] for m in record["measurements"]}


def test_a_sweep_trains_compresses_measures_and_tracks(run: Run, images: Path, tmp_path: Path) -> None:
    sweep = ["-m", *small(images), "train_missing=true", "method=none,dynamic,static", "engine=torch_ao,onnxruntime"]
    code, printed = run(*sweep)
    assert code == 0, printed

    rows = {(r["params"]["method"], r["params"]["engine"]): r for r in records(tmp_path)}
    assert len(rows) == 6
    unsupported = {k for k, r in rows.items() if r["status"] == "unsupported"}
    assert unsupported == {("dynamic", "onnxruntime")}
    assert all(r["reason"] for k, r in rows.items() if k in unsupported)
    assert all(r["status"] == "finished" for k, r in rows.items() if k not in unsupported)
    assert "resnet8" in printed and "static int8" in printed and "mlflow ui" in printed
    assert len(list((tmp_path / "outputs" / "baselines").iterdir())) == 1, "trained once, not once per row"

    static, dynamic = metrics(rows["static", "onnxruntime"]), metrics(rows["dynamic", "torch_ao"])
    onnx_file = next((tmp_path / "outputs" / "artifacts").glob("resnet8-static*pt2*")) / "model.onnx"
    assert static["size_mb"] == onnx_file.stat().st_size / 1e6
    assert static["quantized_macs_share"] == 1 and dynamic["quantized_macs_share"] < 0.001
    assert static["packed_size_mb"] < 0.3 * metrics(rows["none", "torch_ao"])["packed_size_mb"]
    # fp32 is one function whatever runs it.
    assert metrics(rows["none", "onnxruntime"])["top1"] == metrics(rows["none", "torch_ao"])["top1"]
    assert metrics(rows["none", "onnxruntime"])["agreement"] == 1

    client = MlflowClient(f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("qexp").experiment_id])
    kinds = [r.data.tags["qexp.kind"] for r in runs]
    assert (kinds.count("compress"), kinds.count("sweep"), kinds.count("train")) == (6, 1, 1)
    by_name = {r.info.run_name: r for r in runs}
    assert by_name["resnet8 · static int8 · onnxruntime · batch 1"].data.metrics["top1"] == static["top1"]
    summary = next(r for r in runs if r.data.tags["qexp.kind"] == "sweep")
    assert "| resnet8 | static int8 | onnxruntime |" in summary.data.tags["mlflow.note.content"]
    table = next((tmp_path / "outputs" / "sweeps").rglob("results.csv"))
    assert len(list(csv.DictReader(table.open()))) == 6


def test_benchmark_measures_an_artifact_again(run: Run, images: Path, tmp_path: Path) -> None:
    assert run(*small(images, "train_missing=true", "method=static", "engine=onnxruntime"))[0] == 0
    artifact = next((tmp_path / "outputs" / "artifacts").glob("resnet8-static*"))
    first = metrics(records(tmp_path)[0])
    code, printed = run("-m", f"artifact={artifact}", "engine=onnxruntime,torch_ao", "batch_size=1,4", *QUICK, script=benchmark)
    assert code == 0, printed
    again = [r for r in records(tmp_path) if r["kind"] == "benchmark"]
    assert sorted((r["params"]["engine"], r["params"]["batch_size"], r["status"]) for r in again) == [
        ("onnxruntime", 1, "finished"), ("onnxruntime", 4, "finished"), ("torch_ao", 1, "unsupported"), ("torch_ao", 4, "unsupported"),
    ]  # fmt: skip
    for record in again:
        if record["params"]["engine"] == "onnxruntime":
            assert (metrics(record)["top1"], metrics(record)["size_mb"]) == (first["top1"], first["size_mb"])
            latency = metrics(record)["latency_ms"]
            assert metrics(record)["latency_ms_per_image"] == pytest.approx(latency / record["params"]["batch_size"])


def test_auto_takes_the_candidate_that_was_fastest(run: Run, images: Path, tmp_path: Path) -> None:
    code, printed = run(*small(images, "train_missing=true", "method=static", "engine=auto"))
    assert code == 0, printed
    (record,) = records(tmp_path)
    candidates = {n: v for n, v in metrics(record).items() if n.startswith("candidate_")}
    assert len(candidates) == 3
    assert min(candidates, key=candidates.__getitem__) == f"candidate_{record['params']['engine']}_ms"


def test_random_weights_and_pretend_data_have_no_accuracy(run: Run, tmp_path: Path) -> None:
    code, printed = run(
        "model=torchvision", "model.name=squeezenet1_1", "data=random", "data.num_classes=7", "data.image_size=64", "data.images=32",
        "data.calibration_images=8", "checkpoint=random", "method=dynamic", "engine=torch_ao", *QUICK,
    )  # fmt: skip
    assert code == 0, printed
    (record,) = records(tmp_path)
    found = metrics(record)
    assert not {"top1", "top5", "loss", "agreement", "top1_drop"} & found.keys()
    assert record["params"]["model"] == "torchvision/squeezenet1_1"
    assert found["quantized_params_share"] == 0, "SqueezeNet has no linear layer: dynamic quantisation does nothing"
    assert found["latency_ms"] > 0 and found["size_mb"] > 0


def test_none_is_one_row_whatever_bits_says(run: Run, tmp_path: Path) -> None:
    base = ["model=resnet8", "data=random", "data.image_size=16", "data.images=32", "data.calibration_images=8", "checkpoint=random"]
    code, printed = run("-m", *base, "method=none,static", "bits=8,3", "engine=onnxruntime", *QUICK)
    assert code == 0, printed
    assert sorted((r["params"]["method"], r["params"]["bits"], r["status"]) for r in records(tmp_path)) == [
        ("none", 32, "finished"), ("static", 3, "unsupported"), ("static", 8, "finished"),
    ]  # fmt: skip


def test_a_missing_baseline_names_the_command_that_trains_it(run: Run, images: Path, tmp_path: Path) -> None:
    code, printed = run(*small(images), "method=static")
    assert code == 1
    assert f"python train.py data=folder data.root={images}" in printed and "model=resnet8" in printed
    assert "method=static" not in printed.split("python train.py")[1].splitlines()[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\x80\x02not a checkpoint", "ckpt.pt"), (b"", "ckpt.pt")],
)
def test_a_broken_checkpoint_is_one_clear_error(run: Run, images: Path, tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "ckpt.pt"
    file.write_bytes(content)
    code, printed = run(*small(images, f"checkpoint={file}", "method=none"))
    assert code == 1 and message in printed and "Traceback" not in printed


def test_a_checkpoint_of_another_model_lists_its_keys(run: Run, images: Path, tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pt")
    code, printed = run(*small(images, f"checkpoint={tmp_path / 'other.pt'}", "method=none"))
    assert code == 1 and "missing" in printed and "stem.0.weight" in printed and "conv.weight" in printed


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=resnet19", "resnet18"),
        ("method=statik", "static"),
        ("data=cifar", "cifar10"),
        ("bits=99", "bits=99 is out of range"),
        ("bits=0", "bits=0 is out of range"),
        ("engine=tensorflow", "onnxruntime"),
        ("method.observer=histo", "histogram"),
        ("batch_size=0", "batch_size"),
        ("threads=0", "threads"),
    ],
)
def test_bad_input_is_one_clear_error(run: Run, images: Path, tmp_path: Path, override: str, message: str) -> None:
    code, printed = run(*small(images), "train_missing=true", "method=static", override)
    assert code == 1, printed
    assert message in printed and "Traceback" not in printed


def test_outputs_that_cannot_be_written_are_one_clear_error(run: Run, images: Path, tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file, no folder")
    code, printed = run(*small(images), "train_missing=true", "method=static", f"outputs={tmp_path / 'occupied' / 'outputs'}")
    assert code == 1 and "Cannot write" in printed and "Traceback" not in printed
    assert (tmp_path / "occupied").read_text() == "a file, no folder"


def test_a_command_without_a_model_says_how_to_choose_one(run: Run) -> None:
    code, printed = run("data=digits")
    assert code == 1 and "Give model=NAME" in printed and "Traceback" not in printed


def test_a_failed_job_leaves_the_others_running(run: Run, images: Path, tmp_path: Path) -> None:
    """ResNet-8 works at 16 pixels; LeNet-5 needs 32, and says so."""
    sweep = [o for o in small(images) if not o.startswith("model=")]
    code, printed = run("-m", *sweep, "model=lenet5,resnet8", "checkpoint=random", "method=none", "engine=onnxruntime")
    assert code == 1
    status = {r["params"]["model"]: (r["status"], r["reason"]) for r in records(tmp_path)}
    assert status["resnet8"][0] == "finished"
    assert status["lenet5"][0] == "failed" and "32x32" in status["lenet5"][1]
    assert "32x32" in printed


def test_a_child_that_hangs_is_one_failed_row(run: Run, tmp_path: Path) -> None:
    base = ["model=resnet8", "data=random", "data.image_size=16", "data.images=32", "data.calibration_images=8", "checkpoint=random"]
    code, printed = run(*base, "method=none", "engine=onnxruntime", "measure.timeout_s=0.01", *QUICK)
    assert code == 1
    (record,) = records(tmp_path)
    assert record["status"] == "failed" and "measure.timeout_s" in record["reason"]
