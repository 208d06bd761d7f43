"""Devices behind OpenSSH's own server, on the loopback address: all that can go wrong with it becomes a clear error."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qexp.device.ssh import Ssh
from qexp.launch import ChildFailed, ConnectionLost
from qexp.measure.children import Limits
from qexp.tracking.store import read_records
from qexp.types import Unsupported, UserError
from tests import configured
from tests.commands import FEW_WINDOWS, PRETEND, RunCommand, fake
from tests.device.sshd import AVAILABLE, Server, make_key
from tests.device.support import device, write_device
from tests.measure.fake_engines import Fails, Fake, Missing

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not AVAILABLE, reason="needs openssh-server and openssh-client, and to be root"),
]
LIMITS = Limits(60, None)
Made = Callable[..., Ssh]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("sshd"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def board(server: Server, tmp_path: Path) -> Iterator[Made]:
    """Makes devices that the server is."""
    made: list[Ssh] = []

    def make(**options: Any) -> Ssh:
        given = {**server.options(tmp_path), "retry_s": 0.2, "silence_s": 3, "connect_s": 5, **options}
        made.append(device(tmp_path, **given))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_child_answers_and_leaves_nothing(board: Made) -> None:
    made = board()
    assert made.place()["device"] == "loopback" and made.physical_cores() >= 1 and not made.emulated
    with made.alone():
        child = made.child(Fake(), 1, LIMITS, False)
        assert child.ask("ready")["process"] == child.pid
    there = Path(f"/proc/{child.pid}")
    assert there.exists()
    child.stop()
    end = time.monotonic() + 20
    while there.exists() and "Z" not in (there / "stat").read_text().split()[2]:
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("how", "reason"),
    [("segfault", "crashed with SIGSEGV"), ("leave", "ended with exit code 3: no licence found")],
)
def test_a_crash_is_told_from_a_lost_connection(how: str, reason: str, board: Made) -> None:
    child = board().child(Fails(how, importing=True), 1, LIMITS, False)
    with pytest.raises(ChildFailed, match=reason):
        child.ask("ready")


def test_a_server_that_dies_is_a_lost_connection_and_never_a_hang(server: Server, board: Made) -> None:
    made = board(retries=1)

    def run() -> None:
        child = made.child(Fails("hang", importing=True), 1, LIMITS, False)
        threading.Timer(0.5, server.stop).start()
        child.ask("ready")

    began = time.monotonic()
    try:
        with pytest.raises(ConnectionLost, match="the connection to loopback was lost: .*(closed|refused|reset)"):
            made.steadily(run)
        assert time.monotonic() - began < 30
    finally:
        server.stop()
        server.start()
    assert made.facts["host"], "the next row goes on"


def test_a_server_that_comes_back_goes_on(server: Server, board: Made) -> None:
    made, tried = board(retries=3, retry_s=1), list[int]()

    def run() -> int:
        child = made.child(Fake(), 1, LIMITS, False)
        child.ask("ready")
        tried.append(1)
        if len(tried) == 1:
            server.stop()
            server.start()
        child.ask("ready")
        return child.pid

    assert made.steadily(run) > 0 and len(tried) == 2


def test_a_wrong_key(server: Server, board: Made) -> None:
    with pytest.raises(UserError, match="takes none of your keys. ssh-copy-id .*Permission denied"):
        board(identity=str(server.folder / "other_key")).connect()
    with pytest.raises(UserError, match="the file of the key is not there|takes none of your keys"):
        board(identity=str(server.folder / "no_key")).connect()


def test_an_unknown_host_key_and_another_one(server: Server, board: Made, tmp_path: Path) -> None:
    known = server.known_hosts.read_text()
    try:
        server.known_hosts.write_text("")
        with pytest.raises(UserError, match="does not know its host key, or another one.*Host key verification failed"):
            board().connect()
        make_key(tmp_path / "impostor")
        server.know(tmp_path / "impostor")
        with pytest.raises(UserError, match="does not know its host key, or another one"):
            board().connect()
    finally:
        server.known_hosts.write_text(known)


def test_nobody_listens(board: Made) -> None:
    with pytest.raises(ConnectionLost, match="Connection refused"):
        board(port=1).connect()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(board: Made, small_disk: Path, tmp_path: Path) -> None:
    made = board(folder=str(small_disk / "qexp"))
    (tmp_path / "model.onnx").write_bytes(bytes(2_000_000))
    with pytest.raises(ChildFailed, match="cannot write to .* on the device: No space left on device .*clean frees it"):
        made.file(tmp_path / "model.onnx")
    assert not [*(small_disk / "qexp" / "files").rglob("*")]
    made.close()
    (small_disk / "qexp" / "rest").write_bytes(bytes((small_disk / "qexp").stat().st_blksize * 20))
    made.clean()
    fill(small_disk / "all")
    with pytest.raises(UserError, match="cannot be used: cannot write to .*No space left on device"):
        made.close()
        made.connect()


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(4096))
        except OSError:
            pass


@pytest.mark.network
@pytest.mark.skipif("QEXP_NETWORK" not in os.environ, reason="needs a package registry: set QEXP_NETWORK=1")
def test_engines_that_a_bare_python_has(board: Made, bare_python: str) -> None:
    made = board(python=bare_python)
    made.check(configured.engine("onnxruntime"))
    with pytest.raises(Unsupported, match=r"loopback has no openvino: ssh 127.0.0.1 .*-m pip install openvino=="):
        made.check(configured.engine("openvino"))
    with pytest.raises(Unsupported, match="loopback has no torch"):
        made.check(configured.engine("eager"))
    with pytest.raises(Unsupported, match="no_such_library"):
        made.check(Missing())


def test_a_folder_is_not_writable_and_a_python_is_not_there(board: Made) -> None:
    with pytest.raises(UserError, match="cannot write to /proc/qexp on the device"):
        board(folder="/proc/qexp").connect()
    with pytest.raises(UserError, match="has no /no/python: name its Python in device.python"):
        board(python="/no/python").connect()


def test_the_shell_of_the_device_may_take_its_time(board: Made, tmp_path: Path) -> None:
    slow = tmp_path / "slow python"
    slow.write_text(f'#!/bin/sh\nsleep 1\nexec {sys.executable} "$@"\n')
    slow.chmod(0o755)
    assert board(python=f"'{slow}'").facts["host"]


def test_a_server_that_dies_in_the_middle_of_a_sweep_is_one_failed_row(
    server: Server, run: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_device(tmp_path, "loopback", **{**server.options(tmp_path), "retries": 1, "retry_s": 0.2, "connect_s": 5})

    def die() -> None:
        end = time.monotonic() + 120
        while not [*(tmp_path / "there").rglob("model.pt2")] and time.monotonic() < end:
            time.sleep(0.1)
        time.sleep(2)  # the network hangs now at its first call
        server.stop()

    killer = threading.Thread(target=die)
    killer.start()
    words = ["-m", *PRETEND, "data.num_classes=6", *FEW_WINDOWS, *fake("Fails", "how=hang"), "measure.timeout_s=100"]
    try:
        code, printed = run(*words, "device=loopback", "method=none", "measure.parity=null", "measure.accuracy=null")
    finally:
        killer.join()
        server.start()
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    (record,) = read_records(sweep)
    assert code == 1 and record.status == "failed" and "trying again in 0.2 s" in printed
    assert record.reason.startswith("the connection to loopback was lost: "), record.reason
    assert "Connection refused" in record.reason and record.environment["host"], "what it is was known before"
