"""A sweep started again, extended or changed does only what is missing."""

from __future__ import annotations

import csv
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow.tracking import MlflowClient

from qexp.jobs.reuse import EndedRuns
from qexp.records import Measurement, Record
from qexp.tracking.store import read_records, write_record
from tests.commands import FEW_WINDOWS, PRETEND, RunCommand, fake, metrics, static_label
from tests.tiers import more
from tests.tracking.conftest import make_record

pytestmark = pytest.mark.integration
STATIC = static_label()

ROOT = Path(__file__).parents[1]
SWEEP = ["-m", *PRETEND, "method=none,static", *fake("Fake"), *FEW_WINDOWS]


def sweeps(tmp_path: Path) -> list[list[Record]]:
    return [read_records(folder) for folder in sorted((tmp_path / "outputs" / "sweeps").iterdir())]


def rows(records: list[Record]) -> dict[tuple[Any, ...], dict[str, float]]:
    return {(r.params["method"], r.params["batch_size"], r.key): r.metrics for r in records}


@pytest.mark.thorough
def test_the_same_sweep_again_measures_nothing(run: RunCommand, tmp_path: Path) -> None:
    assert run(*SWEEP, "tracking=mlflow")[0] == 0
    code, printed = run(*SWEEP, "tracking=mlflow")
    assert code == 0, printed
    first, again = sweeps(tmp_path)
    assert rows(again) == rows(first) and len(rows(first)) == 2, "a latency measured anew would differ"
    places = {record.key: f"sweeps/{record.sweep}/{i}" for i, record in enumerate(first)}
    assert {record.key: record.reused for record in again} == places and not any(record.reused for record in first)
    assert printed.count("finished before, in sweeps/") == 2 and f"{STATIC} ↺" in printed
    table = sorted((tmp_path / "outputs" / "sweeps").rglob("results.csv"))[1]
    assert [row["reused"] for row in csv.DictReader(table.open())] == list(places.values())

    client = MlflowClient(f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("qexp").experiment_id])
    kinds = [found.data.tags["qexp.kind"] for found in runs]
    assert (kinds.count("compress"), kinds.count("sweep")) == (2, 2)
    measured = {found.info.run_id for found in runs if found.data.tags["qexp.kind"] == "compress"}
    summary = next(found for found in runs if found.data.tags.get("qexp.sweep") == again[0].sweep)
    assert set(summary.data.tags["qexp.reused"].split()) == measured
    assert all(run_id in summary.data.tags["mlflow.note.content"] for run_id in measured)


@pytest.mark.thorough
def test_only_what_is_new_runs(run: RunCommand, tmp_path: Path) -> None:
    for added in ([], ["batch_size=1,2", "picture=stem.0"], ["+method.calibration_batch=4"], ["force=true"]):
        sweep = [o.replace("none,static", "static") for o in SWEEP] if "method" in "".join(added) else SWEEP
        code, printed = run(*sweep, *[o.removeprefix("+") for o in added], "tracking=none")
        assert code == 0, printed
    first, extended, changed, forced = sweeps(tmp_path)
    assert [(r.params["method"], r.params["batch_size"], bool(r.reused)) for r in extended] == [
        ("none", 1, True), ("none", 2, False), ("static", 1, True), ("static", 2, False),
    ]  # fmt: skip
    drawn = sorted((tmp_path / "outputs" / "sweeps" / extended[0].sweep).rglob("layer-stem.0.png"))
    assert [file.parent.name for file in drawn] == ["2", "3"], "of static, reused or not"
    assert [bool(r.reused) for r in changed] == [False], "another option of the method"
    assert [bool(r.reused) for r in forced] == [False, False] and [r.key for r in forced] == [r.key for r in first]
    assert rows(forced) != rows(first)


@pytest.mark.thorough
def test_artifacts_may_be_made_first_and_measured_later(run: RunCommand, tmp_path: Path) -> None:
    """Also elsewhere: the second phase sees the outputs folder under another name."""
    code, printed = run(*SWEEP, "tracking=none", "phase=measure")
    assert code == 1 and printed.count("was not made yet. Run the same command with phase=compress") >= 2
    code, printed = run(*SWEEP, "tracking=none", "phase=compress", "threads=2")
    assert code == 0, printed
    made = sorted(
        folder.name for folder in (tmp_path / "outputs" / "artifacts").iterdir() if not folder.name.startswith(".")
    )
    expected = zip(("fp32", STATIC), made, strict=True)
    assert all(f"compressed: resnet8 · {label} · eager · batch 1: {name}" in printed for label, name in expected)
    (tmp_path / "outputs").rename(tmp_path / "copied")
    code, printed = run(*SWEEP, "tracking=none", "phase=measure", f"outputs={tmp_path / 'copied'}")
    assert code == 0, printed
    early, compressed, measured = (
        read_records(folder) for folder in sorted((tmp_path / "copied" / "sweeps").iterdir())
    )
    assert [r.status for r in early + compressed + measured] == ["failed"] * 2 + ["compressed"] * 2 + ["finished"] * 2
    assert not any(r.measurements for r in compressed) and all("latency_ms" in r.metrics for r in measured)
    assert (
        sorted(
            folder.name for folder in (tmp_path / "copied" / "artifacts").iterdir() if not folder.name.startswith(".")
        )
        == made
    )


@pytest.mark.thorough
def test_a_failure_does_not_take_the_place_of_a_result(run: RunCommand, tmp_path: Path) -> None:
    sweep = ["-m", *PRETEND, "method=none", *fake("Fails", "how=survive"), *FEW_WINDOWS, "tracking=none"]
    assert run(*sweep)[0] == 0
    assert run(*sweep, "picture=none_of_them", "force=true")[0] == 1
    assert run(*sweep, "picture=none_of_them")[0] == 1, "of a run that would be taken over"
    assert run(*sweep)[0] == 0
    first, forced, pictured, again = sweeps(tmp_path)
    assert [r.status for r in first + forced + pictured] == ["finished", "failed", "failed"]
    assert len({r.key for r in first + forced + pictured + again}) == 1
    assert again[0].reused == f"sweeps/{first[0].sweep}/0" and again[0].metrics == first[0].metrics


@pytest.mark.thorough
def test_what_tracking_cannot_take_waits(run: RunCommand, tmp_path: Path) -> None:
    nowhere = [*SWEEP, "method=none", "tracking.uri=http://127.0.0.1:9"]
    code, printed = run(*[o for o in nowhere if o != "method=none,static"])
    assert code == 0 and "tracking is not there, records wait on disk" in printed and "Traceback" not in printed
    assert [r.status for r in sweeps(tmp_path)[0]] == ["finished"] and "fp32" in printed


@pytest.mark.thorough
def test_failed_runs_are_tried_again_unless_told_otherwise(run: RunCommand, tmp_path: Path) -> None:
    fails = ["-m", *PRETEND, "method=none", *fake("Fails", "how=error,survive"), *FEW_WINDOWS, "tracking=none"]
    for added in ([], ["retry_failed=false"], []):
        assert run(*fails, *added)[0] == 1
    first, left, again = sweeps(tmp_path)
    assert [r.status for r in first] == [r.status for r in left] == [r.status for r in again] == ["failed", "finished"]
    assert [bool(r.reused) for r in left] == [True, True] and [bool(r.reused) for r in again] == [False, True]
    assert left[0].reason == first[0].reason != ""


@pytest.mark.thorough
def test_a_sweep_that_shall_stop_leaves_out_what_comes_after_a_failure(run: RunCommand, tmp_path: Path) -> None:
    fails = ["-m", *PRETEND, "method=none", *fake("Fails", "how=survive,error,leave"), *FEW_WINDOWS, "tracking=none"]
    code, printed = run(*fails, "on_error=stop")
    assert code == 1 and printed.count("left out: another run of this sweep failed (on_error=stop)") == 1
    (left,) = sweeps(tmp_path)
    assert [r.status for r in left] == ["finished", "failed"] and "failed: resnet8 · " in printed
    assert run(*fails)[0] == 1 and [bool(r.reused) for r in sweeps(tmp_path)[1]] == [True, False, False]


@pytest.mark.thorough
def test_an_interrupted_command_ends_at_once_and_says_how_to_go_on(tmp_path: Path) -> None:
    hangs = [*PRETEND, "method=none", *fake("Fails", "how=hang"), *FEW_WINDOWS, "tracking=none", "outputs=outputs"]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "compress.py"), *hangs]
    heard = functools.partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # which a background job of a shell would not be
    job = subprocess.Popen(command, cwd=tmp_path, env=surroundings, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    parent = psutil.Process(job.pid)
    try:
        while not list((tmp_path / "outputs").glob("cache/runs/.*.lock")) or len(parent.children()) < 2:
            assert job.poll() is None, job.communicate()
            time.sleep(0.1)
        children = parent.children(recursive=True)
        job.send_signal(signal.SIGINT)
        _, errors = job.communicate(timeout=120)
    finally:
        job.kill()  # or it would hang, and hold the lock of all measurements
    assert job.returncode == 130 and "Traceback" not in errors
    assert errors.strip().startswith(
        "Interrupted. What is finished is kept; to go on: python compress.py model=resnet8"
    )
    assert psutil.wait_procs(children, timeout=120)[1] == []


@pytest.mark.parametrize("harm", more("record", "artifact", "entry", "gone"))
def test_what_is_damaged_or_gone_is_computed_again(run: RunCommand, tmp_path: Path, harm: str) -> None:
    sweep = [*[o.replace("none,static", "none") for o in SWEEP], "tracking=none"]
    assert run(*sweep)[0] == 0
    record = next((tmp_path / "outputs" / "sweeps").rglob("record.json"))
    (entry,) = (tmp_path / "outputs" / "cache" / "runs").glob("*.json")
    if harm == "record":
        record.write_text(record.read_text().replace('"finished"', '"failed"'))
    elif harm == "entry":
        entry.write_text(entry.read_text()[:20])
    elif harm == "artifact":
        shutil.rmtree(json.loads(record.read_text())["artifact"])
    else:
        shutil.rmtree(record.parent)
    code, printed = run(*sweep)
    assert code == 0 and ("is damaged and is computed again" in printed) == (harm in ("record", "entry"))
    (made,) = sweeps(tmp_path)[-1]
    assert made.status == "finished" and not made.reused and metrics(made.to_json())
    assert bool(list(entry.parent.glob("*.damaged"))) == (harm in ("record", "entry"))
    assert run(*sweep)[0] == 0 and sweeps(tmp_path)[-1][0].reused == f"sweeps/{made.sweep}/0"


def test_a_key_is_computed_by_one_at_a_time(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with EndedRuns(tmp_path).claim("key"):
            order.append("second")

    waiting = threading.Thread(target=second)
    with EndedRuns(tmp_path).claim("key"):
        waiting.start()
        waiting.join(0.3)
        with EndedRuns(tmp_path).claim("another"):
            order.append("first")
    waiting.join()
    assert order == ["first", "second"]


def test_what_was_disturbed_is_measured_again_and_replaces_nothing(tmp_path: Path) -> None:
    ended = EndedRuns(tmp_path)

    def remember(place: str, kind: str, value: float) -> Record | None:
        measured = (Measurement("latency_ms", value, "ms", kind),)
        made = replace(make_record(artifact=""), key="k", measurements=measured)
        write_record(made, tmp_path / "sweeps" / place / "0")
        ended.remember(made, tmp_path / "sweeps" / place / "0" / "record.json")
        return ended.find("k")

    first = remember("a", "disturbed", 9.0)
    assert first and first.disturbed == {"latency_ms": 9.0} and not first.metrics
    for place, kind, value, kept in (
        ("b", "disturbed", 8.0, 8.0), ("c", "measured", 2.0, 2.0), ("d", "disturbed", 7.0, 2.0),
    ):  # fmt: skip
        found = remember(place, kind, value)
        assert found and (found.metrics | found.disturbed) == {"latency_ms": kept}
