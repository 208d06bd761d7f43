"""device= is an axis of a sweep: rows, keys, records, tables and heats are by device."""

from __future__ import annotations

from pathlib import Path

import pytest

from qexp.device.__main__ import main as device_command
from qexp.records import FP32_ENGINE, Record
from qexp.tracking.store import read_records
from tests.commands import FEW_WINDOWS, PRETEND, QUICK, RunCommand, fake
from tests.device.support import script, write_device

pytestmark = pytest.mark.integration

FAKE_CLASSES = ["data.num_classes=6"]  # as many as the fake engines give
ROWS = ["-m", *PRETEND, *QUICK, "engine=onnxruntime"]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices of the user's own, all of which are this machine."""
    monkeypatch.chdir(tmp_path)
    write_device(tmp_path, "board")


def records_of(outputs: Path) -> dict[tuple[str, str], Record]:
    """The records of the newest sweep, by method and device."""
    sweep = sorted((outputs / "sweeps").iterdir())[-1]
    return {(record.params["method"], record.device): record for record in read_records(sweep)}


@pytest.mark.thorough
def test_rows_of_each_device_are_measured_and_found_again(run: RunCommand, tmp_path: Path) -> None:
    code, printed = run(*ROWS, "method=none,static", "device=local,board")
    assert code == 0, printed
    found = records_of(tmp_path / "outputs")
    assert [*found] == [(m, d) for m in ("none", "static") for d in ("local", "board")]
    assert len({record.key for record in found.values()}) == 4
    for (_, name), record in found.items():
        assert record.status == "finished" and record.metrics["latency_ms"] > 0 and record.metrics["memory_mb"] > 0
        assert ("device" in record.params) is (name == "board") and record.environment["host"]
    there = found["static", "board"]
    assert there.environment["device"] == "board" and there.environment["versions"]["onnxruntime"]
    assert there.environment[FP32_ENGINE] == "eager", "this machine has torch"
    assert there.metrics["parity_max_error"] >= 0 and there.metrics["speedup"] > 0
    assert "Latency on each device, ms" in printed and "on board" in printed
    code, printed = run(*ROWS, "method=none,static", "device=board,local")
    assert code == 0 and printed.count("finished before") == 4, printed
    assert {*records_of(tmp_path / "outputs")} == {*found}


def test_a_device_that_cannot_be_reached_is_a_row_and_the_others_go_on(run: RunCommand, tmp_path: Path) -> None:
    refuses = script(tmp_path / "refuses", "#!/bin/sh\necho 'ssh: connect to host x: No route to host' >&2\nexit 255\n")
    write_device(tmp_path, "away", ssh=str(refuses), retries=1)
    words = ["-m", *PRETEND, *FAKE_CLASSES, *FEW_WINDOWS, *fake("Fake"), "method=none", "threads=auto"]
    code, printed = run(*words, "device=away,local")
    assert code == 1 and "trying again in 0.01 s" in printed
    found = records_of(tmp_path / "outputs")
    assert found["none", "local"].status == "finished" and found["none", "away"].status == "failed"
    assert found["none", "away"].reason == ("the connection to away was lost: ssh: connect to host x: No route to host")
    write_device(tmp_path, "away")  # it is back, and the same command measures what is missing
    code, printed = run(*words, "device=away,local")
    assert code == 0 and records_of(tmp_path / "outputs")["none", "away"].status == "finished", printed


def test_a_crash_there_is_one_failed_row(run: RunCommand, tmp_path: Path) -> None:
    code, printed = run(
        "-m", *PRETEND, *FAKE_CLASSES, *FEW_WINDOWS, *fake("Fails", "how=segfault,survive"), "device=board"
    )
    assert code == 1
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert [(record.status, record.reason) for record in read_records(sweep)] == [
        ("failed", "the measurement crashed with SIGSEGV: Segmentation fault"), ("finished", ""),
    ]  # fmt: skip


@pytest.mark.thorough
def test_an_engine_that_the_device_lacks_is_a_row_with_the_command_that_installs_it(
    run: RunCommand, tmp_path: Path
) -> None:
    code, _ = run("-m", *PRETEND, *FAKE_CLASSES, *FEW_WINDOWS, *fake("Missing"), "device=board", "method=none")
    found = records_of(tmp_path / "outputs")["none", "board"]
    assert code == 0 and found.status == "unsupported"
    assert "board has no no_such_library: ssh loopback" in found.reason.replace(str(tmp_path / "ssh"), "ssh")
    code, _ = run("-m", *PRETEND, *FEW_WINDOWS, "engine=inductor", "device=board", "method=none")
    assert "inductor compiles its file for the processor of this machine" in (
        records_of(tmp_path / "outputs")["none", "board"].reason
    )


def test_the_command_tells_what_a_device_is_and_cleans_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert device_command(["check", "device=board"]) == 0
    told = capsys.readouterr().out
    assert "board: " in told and "onnxruntime  runs" in told and "numpy " in told
    assert "inductor     inductor compiles its file" in told
    assert device_command(["clean", "device=board"]) == 0
    assert "board: removed" in capsys.readouterr().out
    assert not [*(tmp_path / "home").rglob("*.py")]
    assert device_command(["clean", "device=local"]) == 1
    assert "keeps nothing: qexp runs there itself" in capsys.readouterr().err
    assert device_command(["check", "device=ssh"]) == 1
    assert "device.host is not set" in capsys.readouterr().err
    assert device_command(["check", "device=board", "device.python=/no/python"]) == 1
    assert "board has no /no/python" in capsys.readouterr().err
    assert device_command(["check"]) == device_command(["look", "device=board"]) == 2
