"""An arm64 user-space under qemu is a device: its logits pass parity, and its times mean nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from qexp.report.matrix import device_matrix
from qexp.tracking.store import read_records
from tests.commands import PRETEND, QUICK, RunCommand
from tests.device.support import device, write_device

QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.network,
    pytest.mark.skipif("QEXP_NETWORK" not in os.environ, reason="needs a package registry: set QEXP_NETWORK=1"),
    pytest.mark.skipif(QEMU is None or not shutil.which("apt-get"), reason="needs qemu-user-static, and Debian's apt"),
]


@pytest.fixture(scope="module")
def arm64_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The command that runs an arm64 Python here."""
    root = tmp_path_factory.mktemp("arm64") / "root"
    wanted = [f"{name}=={metadata.version(name)}" for name in ("numpy", "onnxruntime")]
    made = subprocess.run(
        [str(Path(__file__).with_name("arm64.sh")), str(root), *wanted], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr[-2000:]
    return f"{QEMU} -L {root} {made.stdout.split()[-1]}"


def test_it_is_known_to_be_emulated(arm64_python: str, tmp_path: Path) -> None:
    board = device(tmp_path, python=arm64_python)
    assert board.emulated and "aarch64" in board.facts["system"]
    board.close()


def test_its_logits_pass_parity_and_its_times_are_never_ranked(
    arm64_python: str, tmp_path: Path, run: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_device(tmp_path, "arm64", python=arm64_python)
    rows = ["-m", *PRETEND, "method=none,static", "engine=onnxruntime", "device=local,arm64"]
    code, printed = run(*rows, *QUICK)
    assert code == 0, printed
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    records = read_records(sweep)
    assert len(records) == 4 and {record.status for record in records} == {"finished"}
    for record in records:
        emulated = record.device == "arm64"
        assert record.emulated is emulated and ("latency_ms" in record.metrics) is not emulated
        assert record.metrics["parity_max_error"] < 0.01 or "static" in record.label
    assert (matrix := device_matrix(records)) and {(0, 5), (1, 5)} <= matrix.faint
