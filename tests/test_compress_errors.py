"""What goes wrong in the main job: one row or one line with the reason, and the other jobs go on."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch

import benchmark
from tests.commands import FEW_WINDOWS, PRETEND, QUICK, RunCommand, fake, metrics, records, small

pytestmark = pytest.mark.integration

REASONS = {
    "survive": "",
    "segfault": "the measurement crashed with SIGSEGV",
    "hang": "the measurement hung: no answer to 'start' within 10 s (measure.timeout_s)",
    "eat": "the measurement out of memory: it held ",
    "refuse": "the measurement out of memory: an allocation was refused",
    "error": "the measurement ValueError: the tensor is of the wrong colour",
    "leave": "the measurement ended with exit code 3: no licence found",
}


@pytest.mark.thorough
def test_whatever_ends_a_measurement_is_one_failed_row_with_its_reason(run: RunCommand, tmp_path: Path) -> None:
    fails, limits = (
        fake("Fails", f"how={','.join(reversed(REASONS))}"),
        ["measure.timeout_s=10", "measure.memory_mb=500"],
    )
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


@pytest.mark.thorough
def test_a_benchmark_that_fails_is_one_failed_row_too(run: RunCommand, tmp_path: Path) -> None:
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


@pytest.mark.thorough
def test_an_engine_that_computes_something_else_is_one_failed_row_with_the_figures(
    run: RunCommand, images: Path, tmp_path: Path
) -> None:
    """The reference is an engine that calls every image dark."""
    shown = [o for o in small(images) if not o.startswith("fp32_engines.")]
    alike = "measure.parity.most_error=1"  # as the reference says the same in fp32, no error could be rounding
    code, printed = run("-m", *shown, "train_missing=true", "method=static", *fake("Says", "answer=0,1"), alike)
    assert code == 1, printed
    rows = {r["config"]["engine"]["answer"]: r for r in records(tmp_path)}
    assert (
        rows[0]["status"] == "finished"
        and metrics(rows[0])["parity_agreement"] == 1
        and metrics(rows[0])["top1"] == 0.5
    )
    assert (rows[1]["status"], rows[1]["measurements"]) == ("failed", [])
    reason = "says does not compute what the graph says: of 40 images about which the reference is decided 0.0% get"
    assert rows[1]["reason"].startswith(reason) and reason in printed


def test_a_missing_baseline_names_the_command_that_trains_it(run: RunCommand, images: Path, tmp_path: Path) -> None:
    code, printed = run(*small(images), "method=static")
    assert code == 1
    assert f"python train.py data=folder data.root={images}" in printed and "model=resnet8" in printed
    assert "method=static" not in printed.split("python train.py")[1].splitlines()[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\x80\x02not a checkpoint", "ckpt.pt"), (b"", "ckpt.pt")],
)
def test_a_broken_checkpoint_is_one_clear_error(
    run: RunCommand, images: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "ckpt.pt"
    file.write_bytes(content)
    code, printed = run(*small(images, f"checkpoint={file}", "method=none"))
    assert code == 1 and message in printed and "Traceback" not in printed


def test_a_checkpoint_of_another_model_lists_its_keys(run: RunCommand, images: Path, tmp_path: Path) -> None:
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
def test_bad_input_is_one_clear_error(
    run: RunCommand, images: Path, tmp_path: Path, override: str, message: str
) -> None:
    code, printed = run(*small(images), "train_missing=true", "method=static", override)
    assert code == 1, printed
    assert message in printed and "Traceback" not in printed


def test_outputs_that_cannot_be_written_are_one_clear_error(run: RunCommand, images: Path, tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file, no folder")
    code, printed = run(
        *small(images), "train_missing=true", "method=static", f"outputs={tmp_path / 'occupied' / 'outputs'}"
    )
    assert code == 1 and "Cannot write" in printed and "Traceback" not in printed
    assert (tmp_path / "occupied").read_text() == "a file, no folder"


@pytest.mark.thorough
def test_validation_images_that_weights_may_have_been_trained_on_are_no_test(
    run: RunCommand, images: Path, tmp_path: Path
) -> None:
    """Of unknown weights in a file, and of a baseline whose training images were others of the same name."""
    asked = ["method=none", "engine=eager", "measure.latency=null", "measure.accuracy.part=validation"]
    code, printed = run(*small(images, "train_missing=true", *asked))
    (trained,) = records(tmp_path)
    assert code == 0 and "val_top1" in metrics(trained), printed
    weights = next((tmp_path / "outputs" / "baselines").rglob("*.safetensors"))
    code, printed = run(*small(images, f"checkpoint={weights}", *asked))
    assert code == 1 and "is unknown: they are no baseline of train.py. Give measure.accuracy.part=test" in printed
    others = tmp_path / "others" / images.name
    shutil.copytree(images, others)
    next(others.rglob("train/dark/*.png")).unlink()
    code, printed = run(*small(others, *asked))
    assert code == 1 and "is unknown: they are a baseline of other images" in printed, printed


def test_a_command_without_a_model_says_how_to_choose_one(run: RunCommand) -> None:
    code, printed = run("data=digits")
    assert code == 1 and "Give model=NAME" in printed and "Traceback" not in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["-m", "method=none,static", "method.sparsity=0.5"],
            "There is no method.sparsity with any of method=none,static:",
        ),
        (["-m", "method=qat", "--cfg", "job"], "--cfg shows the config of one run. Leave -m out"),
        (["experiment=search", "measure.latency.windows=2"], "measure.latency has no keys with these choices."),
        (["engine@rivals=eager"], "Give engine@fp32_engines=eager."),
        (["checkpoint=epoch=9-step=100.ckpt"], """leaves there: 'checkpoint="epoch=9-step=100.ckpt"'"""),
        (["checkpoint=my (1)/w.pt"], """leaves there: 'checkpoint="my (1)/w.pt"'"""),
    ],
)
def test_a_key_that_is_not_there_says_what_to_do(run: RunCommand, words: list[str], message: str) -> None:
    code, printed = run("model=lenet5", "data=digits", *words)
    assert code == 1 and message in printed and "Traceback" not in printed


@pytest.mark.thorough
def test_a_failed_job_leaves_the_others_running(run: RunCommand, images: Path, tmp_path: Path) -> None:
    """ResNet-8 works at 16 pixels; LeNet-5 needs 32, and says so."""
    sweep = [o for o in small(images) if not o.startswith("model=")]
    code, printed = run("-m", *sweep, "model=lenet5,resnet8", "checkpoint=random", "method=none", "engine=onnxruntime")
    assert code == 1
    status = {r["params"]["model"]: (r["status"], r["reason"]) for r in records(tmp_path)}
    assert status["resnet8"][0] == "finished"
    assert status["lenet5"][0] == "failed" and "32x32" in status["lenet5"][1]
    assert "32x32" in printed


@pytest.mark.thorough
def test_a_child_that_hangs_is_one_failed_row(run: RunCommand, tmp_path: Path) -> None:
    code, printed = run(*PRETEND, "method=none", "engine=onnxruntime", "measure.timeout_s=0.01", *QUICK)
    assert code == 1
    (record,) = records(tmp_path)
    assert record["status"] == "failed" and "measure.timeout_s" in record["reason"]


@pytest.mark.parametrize("sweep", [["-m"], []], ids=["sweep", "single run"])
def test_a_server_without_its_address_is_an_error_before_anything_runs(
    sweep: list[str], run: RunCommand, tmp_path: Path
) -> None:
    code, printed = run(*sweep, *PRETEND, "method=none", "tracking=server")
    assert code == 1 and printed.strip() == "error: tracking.uri is not set. Give tracking.uri=VALUE."
    assert not records(tmp_path)
