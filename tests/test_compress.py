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
from qexp.measure import base


def without(node: str, *engines: str) -> list[str]:
    """Overrides that leave engines out of the candidates of the config node `engine` or `rivals`."""
    return [f"{node}.candidates.{engine}=null" for engine in engines]


SLOW = ("inductor", "executorch", "openvino")  # to prepare
FEW_WINDOWS = [
    "measure.latency.windows=2", "measure.latency.calls=2", "measure.latency.window_s=0.01", "measure.latency.warmup_calls=2",
    "measure.latency.warmup_s=0.01", "threads=1",
]  # fmt: skip
QUICK = [*FEW_WINDOWS, *without("rivals", *SLOW, "torch_ao", "eager")]
PRETEND = ["model=resnet8", "data=random", "data.image_size=16", "data.images=32", "data.calibration_images=8", "checkpoint=random"]
FAKE = "tests.measure.fake_engines"  # engines that take any graph for theirs
FAKE_FP32 = ["engine@rivals=eager", *(f"{e}._target_={FAKE}.Fake" for e in ("rivals", "baseline.engine")), "~rivals.device"]
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
    """Call an entry script's main with the given overrides, outputs below tmp_path; exit code and everything printed.

    No time is checked here, so nobody has to wait until this machine measures nothing else.
    """
    monkeypatch.setattr(base, "HOST_LOCK", tmp_path / "measure.lock")

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


def fake(name: str, *options: str) -> list[str]:
    """Overrides that put an engine of tests/measure/fake_engines.py, and others for fp32, in the place of real ones."""
    return ["engine=eager", "~engine.device", f"engine._target_={FAKE}.{name}", *(f"+engine.{o}" for o in options), *FAKE_FP32]


def small(images: Path, *more: str) -> list[str]:
    data = ["data=folder", f"data.root={images}", "data.image_size=16", "data.channels=1", "data.calibration_images=16"]
    return [*data, "model=resnet8", "recipe.epochs=1", "recipe.batch_size=8", "trainer=cpu", *QUICK, *more]


def records(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(f.read_text()) for f in sorted((tmp_path / "outputs" / "sweeps").rglob("record.json"))]


def metrics(record: dict[str, Any]) -> dict[str, float]:
    return {m["name"]: m["value"] for m in record["measurements"]}


def test_a_sweep_trains_compresses_measures_and_tracks(run: Run, images: Path, tmp_path: Path) -> None:
    shown = [o for o in small(images) if o != "rivals.candidates.torch_ao=null"]  # two rivals, of which one is the fastest
    code, printed = run("-m", *shown, "train_missing=true", "method=none,dynamic,static,half", "engine=torch_ao,onnxruntime")
    assert code == 0, printed

    rows = {(r["params"]["method"], r["params"]["engine"]): r for r in records(tmp_path)}
    assert len(rows) == 8
    unsupported = {k for k, r in rows.items() if r["status"] == "unsupported"}
    assert unsupported == {("half", "torch_ao"), ("half", "onnxruntime")}
    assert all(r["reason"] for k, r in rows.items() if k in unsupported)
    finished = {k: r for k, r in rows.items() if k not in unsupported}
    assert {r["status"] for r in finished.values()} == {"finished"}
    assert "resnet8" in printed and "static int8" in printed and "mlflow ui" in printed
    assert len(list((tmp_path / "outputs" / "baselines").iterdir())) == 1, "trained once, not once per row"

    static, dynamic = metrics(rows["static", "onnxruntime"]), metrics(rows["dynamic", "torch_ao"])
    onnx_file = next((tmp_path / "outputs" / "artifacts").glob("resnet8-static*pt2*")) / "model.onnx"
    assert static["size_mb"] == onnx_file.stat().st_size / 1e6
    assert static["quantized_macs_share"] == 1 and dynamic["quantized_macs_share"] < 0.001
    assert static["packed_size_mb"] < 0.3 * metrics(rows["none", "torch_ao"])["packed_size_mb"]
    assert static["parity_agreement"] >= 0.99 and 0 < static["parity_max_error"] < 0.1
    # fp32 is one function whatever runs it.
    assert metrics(rows["none", "onnxruntime"])["top1"] == metrics(rows["none", "torch_ao"])["top1"]
    assert metrics(rows["none", "onnxruntime"])["agreement"] == metrics(rows["none", "torch_ao"])["parity_agreement"] == 1

    (timed,) = (tmp_path / "outputs" / "cache" / "fastest").iterdir()  # once, not once per row
    fastest = next(iter(json.loads(timed.read_text())))
    assert {r["notes"]["speedup_vs_best_fp32"] for r in finished.values()} == {f"the fastest fp32 engine here was {fastest}"}
    assert {k for k, r in finished.items() if "speedup_vs_best_fp32" not in metrics(r)} == {("none", fastest)}
    assert all("speedup" in metrics(r) for r in finished.values())
    assert {k for k, r in finished.items() if "allocated_mib" in r["notes"]} == {k for k in finished if k[1] == "onnxruntime"}
    profiles = list((tmp_path / "outputs" / "sweeps").rglob("operators.json"))
    assert len(profiles) == 3 and all(json.loads(profile.read_text()) for profile in profiles)

    client = MlflowClient(f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("qexp").experiment_id])
    kinds = [r.data.tags["qexp.kind"] for r in runs]
    assert (kinds.count("compress"), kinds.count("sweep"), kinds.count("train")) == (8, 1, 1)
    by_name = {r.info.run_name: r for r in runs}
    assert by_name["resnet8 · static int8 · onnxruntime · batch 1"].data.metrics["top1"] == static["top1"]
    summary = next(r for r in runs if r.data.tags["qexp.kind"] == "sweep")
    assert "| resnet8 | static int8 | onnxruntime |" in summary.data.tags["mlflow.note.content"]
    table = next((tmp_path / "outputs" / "sweeps").rglob("results.csv"))
    assert len(list(csv.DictReader(table.open()))) == 8


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
            same = ("top1", "agreement", "size_mb", "parity_agreement")
            assert [metrics(record)[name] for name in same] == [first[name] for name in same]
            latency = metrics(record)["latency_ms"]
            assert metrics(record)["latency_ms_per_image"] == pytest.approx(latency / record["params"]["batch_size"])
            assert {"speedup", "speedup_vs_best_fp32"} <= metrics(record).keys()
        else:
            assert record["reason"] == f"torch_ao does not run {artifact.name}, which was made for other kernels; compress for it"


def test_benchmark_compresses_a_network_once_for_all_batch_sizes(run: Run, tmp_path: Path) -> None:
    code, printed = run("-m", *PRETEND, "method=static", "engine=onnxruntime", "batch_size=1,4", *QUICK, script=benchmark)
    assert code == 0, printed
    made = records(tmp_path)
    assert [(r["kind"], r["status"], r["params"]["label"], r["params"]["batch_size"]) for r in made] == [
        ("benchmark", "finished", "static int8", 1), ("benchmark", "finished", "static int8", 4),
    ]  # fmt: skip
    folders = [folder.name.split("-")[1] for folder in (tmp_path / "outputs" / "artifacts").iterdir() if folder.is_dir()]
    assert sorted(folders) == ["none", "static"]
    for record in made:
        found, batch = metrics(record), record["params"]["batch_size"]
        assert found["latency_ms_per_image"] == pytest.approx(found["latency_ms"] / batch)
        assert {"speedup", "speedup_vs_best_fp32"} <= found.keys() and 0 < found["parity_max_error"] < 0.1
        assert not {"top1", "agreement", "parity_agreement"} & found.keys() and record["notes"]["top1"]


def test_auto_takes_the_candidate_that_was_fastest(run: Run, images: Path, tmp_path: Path) -> None:
    few = without("engine", "inductor", "executorch", "eager")
    code, printed = run(*small(images, "train_missing=true", "method=static", "engine=auto", *few))
    assert code == 0, printed
    (record,) = records(tmp_path)
    candidates = {n: v for n, v in metrics(record).items() if n.startswith("candidate_")}
    assert set(candidates) == {"candidate_onnxruntime_ms", "candidate_openvino_ms", "candidate_torch_ao_ms"}
    assert min(candidates, key=candidates.__getitem__) == f"candidate_{record['params']['engine']}_ms"


def test_auto_notes_who_was_left_out(run: Run, tmp_path: Path) -> None:
    candidates = [f"engine.candidates.{e}._target_={FAKE}.{f}" for e, f in (("openvino", "Missing"), ("executorch", "Fails"))]
    crash = "+engine.candidates.executorch.how=segfault"
    others = [f"engine.candidates.{e}._target_={FAKE}.Takes" for e in ("onnxruntime", "inductor")]
    times = ["+engine.candidates.onnxruntime.ms=8", "+engine.candidates.inductor.ms=1"]
    left = without("engine", "torch_ao", "eager")
    code, printed = run(*PRETEND, "method=none", *FAKE_FP32, *candidates, crash, *others, *times, *left, *FEW_WINDOWS)
    assert code == 0, printed
    (record,) = records(tmp_path)
    assert record["params"]["engine"] == "takes" and record["config"]["engine"]["candidates"]["inductor"]["ms"] == 1
    assert {n: round(v) for n, v in metrics(record).items() if n.startswith("candidate_")} == {
        "candidate_inductor_ms": 1, "candidate_onnxruntime_ms": 8,
    }  # fmt: skip
    assert {n: note for n, note in record["notes"].items() if n.startswith("candidate ")} == {
        "candidate openvino": "left out: missing needs no_such_library, which is not installed: uv pip install no_such_library",
        "candidate executorch": "left out: it crashed with SIGSEGV",
    }


def test_candidates_that_are_all_null_are_one_clear_error(run: Run, tmp_path: Path) -> None:
    left = without("engine", "onnxruntime", "openvino", "inductor", "executorch", "torch_ao", "eager")
    code, printed = run(*PRETEND, "method=none", "engine=auto", *left, *QUICK)
    assert code == 1 and "Every candidate is null (onnxruntime, openvino, " in printed and "Traceback" not in printed


REASONS = {
    "survive": "",
    "segfault": "the measurement crashed with SIGSEGV",
    "hang": "the measurement hung: no answer to 'start' within 10 s (measure.timeout_s)",
    "eat": "the measurement out of memory: it held ",
    "refuse": "the measurement out of memory: an allocation was refused",
    "error": "the measurement ValueError: the tensor is of the wrong colour",
    "leave": "the measurement ended with exit code 3: no licence found",
}


def test_whatever_ends_a_measurement_is_one_failed_row_with_its_reason(run: Run, tmp_path: Path) -> None:
    fails, limits = fake("Fails", f"how={','.join(reversed(REASONS))}"), ["measure.timeout_s=10", "measure.memory_mb=500"]
    code, printed = run("-m", *PRETEND, "method=none", *fails, *limits, *FEW_WINDOWS)
    assert code == 1
    rows = records(tmp_path)
    assert len(rows) == len(REASONS)
    for row in rows:
        how = row["config"]["engine"]["how"]
        assert row["status"] == ("failed" if REASONS[how] else "finished"), how
        assert row["reason"].startswith(REASONS[how]) and bool(row["reason"]) == bool(REASONS[how])
        assert bool(row["measurements"]) == (how == "survive")
        assert (row["kind"], row["params"]["model"], row["params"]["method"]) == ("compress", "resnet8", "none")
        assert how == "survive" or REASONS[how] in printed
    table = next((tmp_path / "outputs" / "sweeps").rglob("results.csv"))
    assert [row["status"] for row in csv.DictReader(table.open())].count("failed") == len(REASONS) - 1
    assert not list((tmp_path / "outputs").rglob("traceback.txt")), "a reason that is known needs none"


def test_a_benchmark_that_fails_is_one_failed_row_too(run: Run, tmp_path: Path) -> None:
    assert run(*PRETEND, "method=none", *fake("Fake"), *FEW_WINDOWS)[0] == 0
    (artifact,) = (tmp_path / "outputs" / "artifacts").glob("resnet8-none*")
    fails = fake("Fails", "how=segfault,survive")
    code, printed = run("-m", f"artifact={artifact}", *fails, *FEW_WINDOWS, "batch_size=1,2", script=benchmark)
    assert code == 1, printed
    rows = [r for r in records(tmp_path) if r["kind"] == "benchmark"]
    assert {(r["config"]["engine"]["how"], r["params"]["batch_size"]): (r["status"], r["reason"]) for r in rows} == {
        ("segfault", 1): ("failed", REASONS["segfault"]), ("segfault", 2): ("failed", REASONS["segfault"]),
        ("survive", 1): ("finished", ""), ("survive", 2): ("finished", ""),
    }  # fmt: skip


def test_an_engine_that_computes_something_else_is_one_failed_row_with_the_figures(run: Run, images: Path, tmp_path: Path) -> None:
    """The reference is an engine that calls every image dark."""
    shown = [o for o in small(images) if not o.startswith("rivals.")]
    code, printed = run("-m", *shown, "train_missing=true", "method=static", *fake("Says", "answer=0,1"))
    assert code == 1, printed
    rows = {r["config"]["engine"]["answer"]: r for r in records(tmp_path)}
    assert rows[0]["status"] == "finished" and metrics(rows[0])["parity_agreement"] == 1 and metrics(rows[0])["top1"] == 0.5
    assert (rows[1]["status"], rows[1]["measurements"]) == ("failed", [])
    assert rows[1]["reason"].startswith("says does not compute what the graph says: of 40 images 0.0% get the reference's class")
    assert "of 40 images 0.0%" in printed


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
    code, printed = run("-m", *PRETEND, "method=none,static", "bits=8,3", *fake("Fake"), *FEW_WINDOWS)
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
    code, printed = run(*PRETEND, "method=none", "engine=onnxruntime", "measure.timeout_s=0.01", *QUICK)
    assert code == 1
    (record,) = records(tmp_path)
    assert record["status"] == "failed" and "measure.timeout_s" in record["reason"]
