"""The main job as a user runs it: train what is missing, compress, measure, track, print one table."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

import benchmark
from tests.commands import (
    FAKE_FP32,
    FEW_WINDOWS,
    PRETEND,
    QUICK,
    RunCommand,
    fake,
    fake_candidate,
    metrics,
    records,
    small,
    static_label,
    without,
)

pytestmark = pytest.mark.integration
STATIC = static_label()


def test_a_first_sweep_trains_compresses_and_measures(run: RunCommand, images: Path, tmp_path: Path) -> None:
    words = small(images, "train_missing=true", "method=none,static", "engine=onnxruntime", "tracking=none")
    code, printed = run("-m", *words)
    assert code == 0, printed
    fp32, static = (metrics(record) for record in records(tmp_path))
    assert fp32["quantized_macs_share"] == 0 and static["quantized_macs_share"] == 1
    assert static["size_mb"] < 0.5 * fp32["size_mb"] and static["parity_agreement"] >= 0.99
    assert "Fastest within 1 point of fp32" in printed and STATIC in printed


@pytest.mark.thorough
def test_a_sweep_trains_compresses_measures_and_tracks(run: RunCommand, images: Path, tmp_path: Path) -> None:
    shown = [
        o for o in small(images) if o != "fp32_engines.candidates.torch_ao=null"
    ]  # two fp32 engines, of which one is the fastest
    code, printed = run(
        "-m",
        *shown,
        "train_missing=true",
        "method=none,static,half",
        "engine=torch_ao,onnxruntime",
        "tracking=mlflow",
    )
    assert code == 0, printed

    rows = {(r["params"]["method"], r["params"]["engine"]): r for r in records(tmp_path)}
    assert len(rows) == 6
    unsupported = {k for k, r in rows.items() if r["status"] == "unsupported"}
    assert unsupported == {("half", "torch_ao"), ("half", "onnxruntime")}
    assert all(r["reason"] for k, r in rows.items() if k in unsupported)
    finished = {k: r for k, r in rows.items() if k not in unsupported}
    assert {r["status"] for r in finished.values()} == {"finished"}
    assert "resnet8" in printed and STATIC in printed and "mlflow ui" in printed
    assert len(list((tmp_path / "outputs" / "baselines").iterdir())) == 1, "trained once, not once per row"

    static = metrics(rows["static", "onnxruntime"])
    onnx_file = next((tmp_path / "outputs" / "artifacts").glob("resnet8-static*pt2*")) / "model.onnx"
    assert static["size_mb"] == onnx_file.stat().st_size / 1e6
    assert static["quantized_macs_share"] == 1
    assert static["packed_size_mb"] < 0.3 * metrics(rows["none", "torch_ao"])["packed_size_mb"]
    assert static["parity_agreement"] >= 0.99 and 0 < static["parity_max_error"] < 0.1
    # fp32 is one function whatever runs it.
    assert metrics(rows["none", "onnxruntime"])["top1"] == metrics(rows["none", "torch_ao"])["top1"]
    assert (
        metrics(rows["none", "onnxruntime"])["agreement"] == metrics(rows["none", "torch_ao"])["parity_agreement"] == 1
    )
    fastest_is_found_once(tmp_path, finished)
    everything_is_in_mlflow(tmp_path, static)


def fastest_is_found_once(tmp_path: Path, finished: dict[tuple[str, str], Any]) -> None:
    (timed,) = (tmp_path / "outputs" / "cache" / "fastest").iterdir()  # not once per row
    fastest = next(iter(json.loads(timed.read_text())))
    assert {r["notes"]["speedup_vs_best_fp32"] for r in finished.values()} == {
        f"the fastest fp32 engine here was {fastest}"
    }
    assert {k for k, r in finished.items() if "speedup_vs_best_fp32" not in metrics(r)} == {("none", fastest)}
    assert all("speedup" in metrics(r) for r in finished.values())
    assert {k for k, r in finished.items() if "allocated_mib" in r["notes"]} == {
        k for k in finished if k[1] == "onnxruntime"
    }
    profiles = list((tmp_path / "outputs" / "sweeps").rglob("operators.json"))
    assert len(profiles) == len(finished) and all(json.loads(profile.read_text()) for profile in profiles)
    shares = {k: metrics(r)["float_time_share"] for k, r in finished.items() if k[1] == "onnxruntime"}
    assert shares["none", "onnxruntime"] > 0.9 > 0.5 > shares["static", "onnxruntime"]


def everything_is_in_mlflow(tmp_path: Path, static: dict[str, float]) -> None:
    client = MlflowClient(f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("qexp").experiment_id])
    kinds = [r.data.tags["qexp.kind"] for r in runs]
    assert (kinds.count("compress"), kinds.count("sweep"), kinds.count("train")) == (6, 1, 1)
    by_name = {r.info.run_name: r for r in runs}
    assert by_name[f"resnet8 · {STATIC} · onnxruntime"].data.metrics["top1"] == static["top1"]
    contexts = {
        (r.data.tags["qexp.kind"], *(i.tags[0].value for i in r.inputs.dataset_inputs)) for r in runs if r.data.metrics
    }
    assert contexts == {("compress", "test"), ("train", "train")}
    assert {Path(r.data.tags["mlflow.source.name"]).name for r in runs} == {"compress.py"}
    summary = next(r for r in runs if r.data.tags["qexp.kind"] == "sweep")
    assert f"| resnet8 | {STATIC} | onnxruntime |" in summary.data.tags["mlflow.note.content"]
    table = next((tmp_path / "outputs" / "sweeps").rglob("results.csv"))
    assert len(list(csv.DictReader(table.open()))) == 6


@pytest.mark.thorough
def test_benchmark_measures_an_artifact_again(run: RunCommand, images: Path, tmp_path: Path) -> None:
    assert run(*small(images, "train_missing=true", "method=static", "engine=onnxruntime"))[0] == 0
    artifact = next((tmp_path / "outputs" / "artifacts").glob("resnet8-static*"))
    first = metrics(records(tmp_path)[0])
    code, printed = run(
        "-m", f"artifact={artifact}", "engine=onnxruntime,torch_ao", "batch_size=1,4", *QUICK, script=benchmark
    )
    assert code == 0, printed
    again = [r for r in records(tmp_path) if r["kind"] == "benchmark"]
    assert sorted((r["params"]["engine"], r["params"]["batch_size"], r["status"]) for r in again) == [
        ("onnxruntime", 1, "finished"), ("onnxruntime", 4, "finished"), ("torch_ao", 1, "unsupported"),
        ("torch_ao", 4, "unsupported"),
    ]  # fmt: skip
    for record in again:
        if record["params"]["engine"] == "onnxruntime":
            same = ("top1", "agreement", "size_mb", "parity_agreement")
            assert [metrics(record)[name] for name in same] == [first[name] for name in same]
            latency = metrics(record)["latency_ms"]
            assert metrics(record)["latency_ms_per_image"] == pytest.approx(latency / record["params"]["batch_size"])
            assert {"speedup", "speedup_vs_best_fp32"} <= metrics(record).keys()
        else:
            assert (
                record["reason"]
                == f"torch_ao does not run {artifact.name}, which was made for other kernels; compress for it"
            )
    kept = {file.stem: json.loads(file.read_text()) for file in (artifact / "records").iterdir()}
    assert kept == {r["key"]: r for r in records(tmp_path) if r["status"] == "finished"}


@pytest.mark.thorough
def test_benchmark_compresses_a_network_once_for_all_batch_sizes(run: RunCommand, tmp_path: Path) -> None:
    code, printed = run(
        "-m", *PRETEND, "method=static", "engine=onnxruntime", "batch_size=1,4", *QUICK, script=benchmark
    )
    assert code == 0, printed
    made = records(tmp_path)
    assert [(r["kind"], r["status"], r["params"]["label"], r["params"]["batch_size"]) for r in made] == [
        ("benchmark", "finished", STATIC, 1), ("benchmark", "finished", STATIC, 4),
    ]  # fmt: skip
    folders = [
        folder.name.split("-")[1] for folder in (tmp_path / "outputs" / "artifacts").iterdir() if folder.is_dir()
    ]
    assert sorted(folders) == ["none", "static"]
    for record in made:
        found, batch = metrics(record), record["params"]["batch_size"]
        assert found["latency_ms_per_image"] == pytest.approx(found["latency_ms"] / batch)
        assert {"speedup", "speedup_vs_best_fp32"} <= found.keys() and 0 < found["parity_max_error"] < 0.1
        assert not {"top1", "agreement", "parity_agreement"} & found.keys() and record["notes"]["top1"]


@pytest.mark.thorough
def test_auto_takes_the_candidate_that_was_fastest(run: RunCommand, images: Path, tmp_path: Path) -> None:
    few = without("engine", "inductor", "executorch", "litert", "ncnn", "eager")
    code, printed = run(*small(images, "train_missing=true", "method=static", "engine=auto", *few))
    assert code == 0, printed
    (record,) = records(tmp_path)
    candidates = {n: v for n, v in metrics(record).items() if n.startswith("candidate_")}
    assert set(candidates) == {"candidate_onnxruntime_ms", "candidate_openvino_ms", "candidate_torch_ao_ms"}
    assert min(candidates, key=candidates.__getitem__) == f"candidate_{record['params']['engine']}_ms"


def test_auto_notes_who_was_left_out(run: RunCommand, tmp_path: Path) -> None:
    candidates = [
        *fake_candidate("openvino", "Missing"),
        *fake_candidate("executorch", "Fails", "how=segfault", "importing=false"),
        *fake_candidate("onnxruntime", "Takes", "ms=8"),
        *fake_candidate("inductor", "Takes", "ms=1"),
        *without("engine", "litert", "ncnn", "torch_ao", "eager"),
    ]
    code, printed = run(*PRETEND, "method=none", *FAKE_FP32, *candidates, *FEW_WINDOWS)
    assert code == 0, printed
    (record,) = records(tmp_path)
    assert record["params"]["engine"] == "takes" and record["config"]["engine"]["candidates"]["inductor"]["ms"] == 1
    assert {n: round(v) for n, v in metrics(record).items() if n.startswith("candidate_")} == {
        "candidate_inductor_ms": 1, "candidate_onnxruntime_ms": 8,
    }  # fmt: skip
    assert {n: note for n, note in record["notes"].items() if n.startswith("candidate ")} == {
        "candidate openvino": "left out: missing needs no_such_library, which is not installed: "
        "pip install no_such_library",
        "candidate executorch": "left out: it crashed with SIGSEGV",
    }


def test_candidates_that_are_all_null_are_one_clear_error(run: RunCommand, tmp_path: Path) -> None:
    left = without("engine", "onnxruntime", "openvino", "inductor", "executorch", "litert", "ncnn", "torch_ao", "eager")
    code, printed = run(*PRETEND, "method=none", "engine=auto", *left, *QUICK)
    assert code == 1 and "Every candidate is null (onnxruntime, openvino, " in printed and "Traceback" not in printed


@pytest.mark.thorough
def test_random_weights_and_pretend_data_have_no_accuracy(run: RunCommand, tmp_path: Path) -> None:
    code, printed = run(
        "model=torchvision", "model.name=squeezenet1_1", "data=random", "data.num_classes=7", "data.image_size=64",
        "data.images=32",
        "data.calibration_images=8", "checkpoint=random", "method=dynamic", "method.layers=linear",
        "engine=torch_ao", *QUICK,
    )  # fmt: skip
    assert code == 0, printed
    (record,) = records(tmp_path)
    found = metrics(record)
    assert not {"top1", "top5", "loss", "agreement", "top1_drop"} & found.keys()
    assert record["params"]["model"] == "torchvision/squeezenet1_1"
    assert found["quantized_params_share"] == 0, "SqueezeNet has no linear layer: dynamic quantisation does nothing"
    assert found["latency_ms"] > 0 and found["size_mb"] > 0


@pytest.mark.thorough
def test_none_is_one_row_whatever_bits_says(run: RunCommand, tmp_path: Path) -> None:
    code, printed = run(*PRETEND, "-m", "method=none,static", "bits=8,3", *fake("Fake"), *FEW_WINDOWS)
    assert code == 0, printed
    assert sorted((r["params"]["method"], r["params"]["bits"], r["status"]) for r in records(tmp_path)) == [
        ("none", 32, "finished"), ("static", 3, "unsupported"), ("static", 8, "finished"),
    ]  # fmt: skip


@pytest.mark.thorough
def test_a_network_of_another_seed_is_told(run: RunCommand, images: Path, tmp_path: Path) -> None:
    one = small(images, "train_missing=true", "method=none", "engine=onnxruntime", "tracking=none")
    assert run(*one)[0] == 0
    code, printed = run(*one, "seed=1", "batch_size=2")
    assert code == 0, printed
    own, other = sorted(records(tmp_path), key=lambda record: record["params"]["seed"])
    assert other["seconds"] > 0 and f"finished in {other['seconds']:.0f} s" in printed
    assert "network" not in own["notes"]
    assert other["notes"]["network"].startswith("trained with seed 0: ") and other["notes"]["network"].endswith(
        " has none of seed 1"
    )
    assert f"  network: {other['notes']['network']}\n" in printed
