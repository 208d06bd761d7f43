"""A server of ssh on the loopback address, with keys and a configuration of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import psutil

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
AVAILABLE = bool(SSHD and shutil.which("ssh") and shutil.which("ssh-keygen") and os.geteuid() == 0)
CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
AcceptEnv nothing
"""


class Server:
    """The server, which runs between `start` and `stop`.

    Attributes:
        port: Its port.
        known_hosts: A file with its host key, as a user has it who has connected before.
    """

    def __init__(self, folder: Path):
        self.folder, self.known_hosts = folder, folder / "known_hosts"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        for name in ("host_key", "user_key", "other_key"):
            make_key(folder / name)
        (folder / "config").write_text(CONFIG.format(port=self.port, folder=folder))
        self.know(folder / "host_key")
        self.process: subprocess.Popen[bytes] | None = None

    def know(self, key: Path) -> None:
        kind, public = key.with_suffix(".pub").read_text().split()[:2]
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {kind} {public}\n")

    def start(self) -> None:
        assert SSHD
        Path("/run/sshd").mkdir(exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(self.folder / "config")], stderr=log)
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                time.sleep(0.02)
        raise AssertionError((self.folder / "log").read_text())

    def stop(self) -> None:
        """End the server and all connections to it, as a power cut does."""
        if self.process is None:
            return
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for process in family:
            try:
                if "sshd" in process.name():
                    process.kill()
            except psutil.NoSuchProcess:
                pass
        self.process.wait()
        self.process = None

    def options(self, folder: Path, **options: object) -> dict[str, object]:
        """The options of a device that this server is, which keeps its things in `folder`."""
        ssh = f"ssh -F /dev/null -o IdentitiesOnly=yes -o UserKnownHostsFile={self.known_hosts}"
        own = {"host": "127.0.0.1", "port": self.port, "identity": str(self.folder / "user_key"), "ssh": ssh}
        return {**own, "folder": str(folder / "there"), **options}


def make_key(file: Path) -> None:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)]
    subprocess.run(command, check=True, capture_output=True)
