"""Processes on a device, reached by the system's ssh, and what they answer."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexp.device import boot
from qexp.device.answers import Implausible, check_answer, printable, text
from qexp.device.archive import Archive
from qexp.launch import Child, ChildFailed, ConnectionLost
from qexp.types import UserError

CHUNK = 1 << 20  # bytes of a file in one message
LOST = 255  # the exit code of ssh itself
NOT_FOUND = 127  # a shell's exit code for a command that is not there
SIGNALLED = 128  # a shell's exit code for a process that was ended by signal N is this plus N
KEEPER_S = 120.0  # seconds that a keeper may take to answer
# What ssh says where trying again would change nothing, and what to do about it.
REFUSALS = {
    "Host key verification failed": "ssh does not know its host key, or another one. Connect by hand once ({ssh}), and "
    "compare the fingerprint with the device's own (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub there)",
    "Permission denied": "it takes none of your keys. ssh-copy-id gives it one, or name another (device.identity)",
    "Could not resolve hostname": "no machine of that name is known. Check device.host, or name it in ~/.ssh/config",
    "Bad configuration option": "ssh cannot read its configuration",
    "not accessible: No such file": "the file of the key is not there (device.identity)",
}
BOOT = "import json,sys;exec(compile(json.loads(sys.stdin.readline()),'boot','exec'))"


@dataclass(frozen=True)
class Address:
    """How ssh reaches a device.

    Attributes:
        name: What messages call the device.
        host: What ssh is given as the destination.
        words: The command that connects, with its options, without the destination.
        python: The device's Python.
    """

    name: str
    host: str
    words: tuple[str, ...]
    python: str

    @property
    def by_hand(self) -> str:
        """The command by which a user connects."""
        return shlex.join([self.words[0], self.host])

    def command(self, words: list[str], variables: dict[str, str]) -> list[str]:
        """The command that runs the device's Python there.

        Args:
            words: Arguments of Python.
            variables: Variables of its environment.
        """
        given = [f"{name}={value}" for name, value in variables.items()]
        # The shell stays, and tells by its exit code which signal has ended Python: ssh alone would not.
        line = f"env {shlex.join(given)} {self.python} {shlex.join(words)}; exit $?"
        return [*self.words, "--", self.host, f"exec /bin/sh -c {shlex.quote(line)}"]


@dataclass(frozen=True)
class Remote:
    """What starts a process on a device for a `Child`."""

    command: list[str]

    def fork(self, streams: tuple[int, int, int]) -> subprocess.Popen[bytes]:
        asked, answering, errors = streams
        return subprocess.Popen(self.command, stdin=asked, stdout=answering, stderr=errors, process_group=0)


class RemoteChild(Child):
    """A child on a device.

    Args:
        address: How ssh reaches the device.
        words: Arguments of Python there.
        variables: Variables of its environment.
        timeout_s: Seconds that an answer may take.
        memory_mb: Resident memory that it may hold, in MB, or None for no limit.
        resident_mb: Gives the resident memory of a process there, in MB, or None if the device cannot tell.
        ended: Called with its id when it was stopped, if that is known.
    """

    def __init__(
        self, address: Address, words: list[str], variables: dict[str, str], timeout_s: float,
        memory_mb: float | None = None, resident_mb: Callable[[int], float | None] = lambda process: None,
        ended: Callable[[int], None] = lambda process: None,
    ):  # fmt: skip
        self.address, self.resident_mb, self.ended = address, resident_mb, ended
        self._there: int | None = None  # its id on the device
        try:
            super().__init__("", None, 1, timeout_s, memory_mb, Remote(address.command(words, variables)))
        except FileNotFoundError as error:
            raise UserError(f"{address.words[0]} is not installed, and device={address.name} needs it.") from error

    @property
    def pid(self) -> int:
        assert self._there is not None, "it was not asked whether it is ready"
        return self._there

    def ask(
        self, command: str, told: Callable[[int, int], None] = lambda done, total: None, **arguments: Any
    ) -> dict[str, Any]:
        """Send a command and wait for its answer, whose fields are checked.

        Raises:
            ChildFailed: The child crashed, hung, used too much memory, reported an error or answered nonsense.
            ConnectionLost: The device can no longer be reached.
        """
        try:
            answer = check_answer(command, super().ask(command, told, **arguments), arguments)
        except Implausible:
            self.stop()
            raise
        except ChildFailed as error:
            raise ChildFailed(printable(str(error))) from None
        if command == "ready":
            self._there = answer["process"]
        return answer

    def _check_memory(self) -> None:
        if self.memory_mb is None or self._there is None:
            return
        used = self.resident_mb(self._there)
        if used is not None and used > self.memory_mb:
            self._too_much(used)

    def _explained(self, code: int, said: str) -> Exception:
        said = printable(said)
        if code == LOST:
            for sign, advice in REFUSALS.items():
                if sign in said:
                    advice = advice.format(ssh=self.address.by_hand)
                    return UserError(f"{self.address.name} cannot be reached: {advice}. ssh says: {said}")
            return ConnectionLost(
                f"the connection to {self.address.name} was lost{f': {said}' if said else ', and ssh does not say why'}"
            )
        if code == NOT_FOUND:
            return UserError(
                f"{self.address.name} has no {self.address.python}: name its Python in device.python. It says: {said}"
            )
        return super()._explained(SIGNALLED - code if SIGNALLED < code <= SIGNALLED + signal.NSIG else code, said)

    def stop(self) -> None:
        super().stop()
        if self._there is not None:
            self.ended(self._there)
            self._there = None


class Keeper(RemoteChild):
    """The keeper on a device, started with what it needs of qexp.

    Args:
        address: How ssh reaches the device.
        folder: Folder for everything that is kept there.
        archive: The code of the keeper.
        connect_s: Seconds that connecting may take.

    Raises:
        ConnectionLost: The device cannot be reached now.
        UserError: It can never be reached like this, or its Python cannot run qexp.
    """

    limit = "a keeper's limit"

    def __init__(self, address: Address, folder: str, archive: Archive, connect_s: float):
        super().__init__(address, ["-c", BOOT], {}, connect_s + KEEPER_S)
        try:
            self.folder = self._boot(folder, archive)
        except ChildFailed as error:
            self.stop()
            raise UserError(f"{address.name} cannot be used: {error}") from error
        except BaseException:
            self.stop()
            raise

    def _boot(self, folder: str, archive: Archive) -> str:
        """Let the device unpack the archive, and give the absolute path of the folder there."""
        try:
            self._write(json.dumps(Path(boot.__file__).read_text()).encode() + b"\n", "boot")
        except BrokenPipeError:
            raise self._ended() from None
        asked: dict[str, Any] = {"folder": folder, "digest": archive.digest}
        told = self.ask("boot", **asked)
        if "code" not in told:
            told = self.ask("boot", **asked, archive=base64.b64encode(archive.content).decode())
        return text(told.get("folder"), "folder")

    def unpack(self, archive: Archive) -> str:
        """The folder of an archive's code on the device, which is sent if it is not there."""
        told = self.ask("unpack", digest=archive.digest, archive=None)
        if "code" not in told:
            content = base64.b64encode(archive.content).decode()
            told = self.ask("unpack", digest=archive.digest, archive=content)
        return text(told.get("code"), "code")

    def send(self, file: Path, name: str, told: Callable[[int, int], None]) -> str:
        """The path of a file on the device, which is sent if it is not there.

        Args:
            file: The file.
            name: Where it is kept there. The same name always holds the same bytes.
            told: Called with how many bytes were sent, and how many there are.
        """
        there = self.ask("has", name=name).get("file")
        if there is None:
            size, digest, done = file.stat().st_size, hashlib.sha256(), 0
            with file.open("rb") as stream:
                while done < size or not size:
                    data = stream.read(CHUNK)
                    digest.update(data)
                    last = digest.hexdigest() if done + len(data) >= size else ""
                    self.ask("put", name=name, offset=done, data=base64.b64encode(data).decode(), digest=last)
                    done += len(data)
                    told(done, size)
                    if last:
                        break
            there = self.ask("has", name=name).get("file")
        return text(there, "file")

    def receive(self, file: str, most: int) -> bytes:
        """The bytes of an answer's file, which is then removed there.

        Raises:
            ChildFailed: It has more than `most` bytes.
        """
        received = bytearray()
        while True:
            answer = self.ask("read", file=file, offset=len(received), size=CHUNK).get("data")
            try:
                part = base64.b64decode(answer, validate=True)  # type: ignore[arg-type]
            except (TypeError, ValueError):
                raise ChildFailed(f"sent no bytes: {answer!r:.60}") from None
            received += part
            if len(received) > most:
                raise ChildFailed(f"sent more than the {most} bytes that its answer can have")
            if len(part) < CHUNK:
                return bytes(received)
