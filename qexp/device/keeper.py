"""The keeper of a device: a process there that keeps its files and its lock, watches its cores and knows what it is.

It needs the standard library alone. It ends when the connection does, and the lock is free again then.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from qexp.device.boot import explained, unpacked
from qexp.measure.disturbance import Watch, free_cores
from qexp.measure.machine import environment, physical_cores
from qexp.measure.throttling import Throttling, temperature_c
from qexp.questions import private_output, questions, tell, told

CODE, FILES, ANSWERS = "code", "files", "answers"  # the folders of everything that is kept
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
KERNEL_ARCH = Path("/proc/sys/kernel/arch")  # of Linux 6.1 and newer


class Keeper:
    """The state between questions. Each public method answers one, with a dict that JSON can hold.

    Args:
        folder: Folder for everything that is kept here.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock: int | None = None
        self._watch: Watch | None = None
        self._throttling = Throttling()

    def facts(self) -> dict[str, Any]:
        """What this machine is, as records have it, and what of it changes."""
        return {
            **environment(None), "physical_cores": physical_cores(), "temperature_c": temperature_c(),
            "boot": BOOT_ID.read_text().strip() if BOOT_ID.exists() else None, "emulated": is_emulated(),
        }  # fmt: skip

    def unpack(self, digest: str, archive: str | None) -> dict[str, Any]:
        """The folder of the code in an archive, or `lacks` if it was not given and is not here."""
        code = unpacked(str(self.folder), digest, archive)
        return {"code": code} if code else {"lacks": digest}

    def has(self, name: str) -> dict[str, Any]:
        """The path of a file that was sent as `name`, or None if it is not here."""
        file = self.folder / FILES / name
        return {"file": str(file) if file.is_file() else None}

    def put(self, name: str, offset: int, data: str, digest: str) -> dict[str, Any]:
        """Write a part of a file. It is there as a whole, and checked, once its last part was written.

        Args:
            name: Where it is kept.
            offset: Where the part begins, in bytes.
            data: The part in base64.
            digest: SHA-256 (hex) of the whole file, given with the last part. Empty before.
        """
        file = self.folder / FILES / name
        partial = file.with_name(f"{file.name}.{os.getpid()}")
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("r+b" if offset else "wb") as stream:
                stream.seek(offset)
                stream.write(base64.b64decode(data))
            if digest:
                if hashlib.sha256(partial.read_bytes()).hexdigest() != digest:
                    raise RuntimeError(f"{file.name} arrived damaged")
                os.replace(partial, file)
        except Exception as error:
            partial.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                file.parent.rmdir()
            return {"error": explained(error, self.folder)}
        return {}

    def answer_file(self) -> dict[str, Any]:
        """The path of a new file, for an answer that is too long for one line."""
        folder = self.folder / ANSWERS
        folder.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(suffix=".npy", dir=folder)
        os.close(number)
        return {"file": name}

    def read(self, file: str, offset: int, size: int) -> dict[str, Any]:
        """A part of an answer's file in base64. After its last part, the file is removed."""
        path = self.folder / ANSWERS / Path(file).name
        with path.open("rb") as stream:
            stream.seek(offset)
            data = stream.read(size)
        if len(data) < size:
            path.unlink()
        return {"data": base64.b64encode(data).decode()}

    def lock(self, file: str, patience_s: float, holder: str) -> dict[str, Any]:
        """Take the lock of this machine for measurements, which qexp takes on its own machine, too.

        Args:
            file: File of the lock.
            patience_s: Seconds to wait for it.
            holder: Who takes it, for those who wait.

        Returns:
            `taken`, and `holder`, who has it otherwise.
        """
        number, about = _opened(file), Path(file).with_suffix(".json")
        with contextlib.suppress(OSError):  # every user of the machine takes it in turn
            os.fchmod(number, 0o666)
        end = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    os.close(number)
                    return {"taken": False, "holder": _holder(about)}
                time.sleep(0.05)
        self._lock = number
        with contextlib.suppress(OSError):
            about.write_text(
                json.dumps({"process": os.getpid(), "command": holder, "since": f"{datetime.now():%H:%M:%S}"})
            )
            about.chmod(0o666)
        return {"taken": True, "holder": ""}

    def unlock(self) -> dict[str, Any]:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        return {}

    def watch(self, processes: list[int], threads: int) -> dict[str, Any]:
        """Watch processes that are timed one after the other, on so many threads each."""
        self._watch = Watch(lambda: processes, threads, physical_cores())
        self._throttling.begin()
        return {}

    def disturbed(self) -> dict[str, Any]:
        """Whether they were disturbed since `watch` (None: it is too early to tell), or the cores slowed down."""
        assert self._watch is not None
        found = self._watch.disturbed()
        return {"disturbed": found, "throttled": found is not None and self._throttling.slowed()}

    def free_cores(self) -> dict[str, Any]:
        return {"cores": free_cores()}

    def resident_mb(self, process: int) -> dict[str, Any]:
        """The resident memory of a process, or None if the system does not tell."""
        try:
            pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        except (OSError, ValueError, IndexError):
            return {"resident_mb": None}
        return {"resident_mb": pages * os.sysconf("SC_PAGE_SIZE") / 1e6}

    def kill(self, process: int) -> dict[str, Any]:
        """End a child that was started here, which may not notice that its connection has ended."""
        with contextlib.suppress(OSError):
            if b"qexp" in Path(f"/proc/{process}/cmdline").read_bytes():
                os.kill(process, signal.SIGKILL)
        return {}

    def clean(self) -> dict[str, Any]:
        """Remove everything that is kept here, and tell how much that was in MB."""
        places = [self.folder / name for name in (CODE, FILES, ANSWERS)]
        size = sum(file.stat().st_size for place in places for file in place.rglob("*") if file.is_file())
        for place in places:
            shutil.rmtree(place, ignore_errors=True)
        with contextlib.suppress(OSError):  # it holds something else
            self.folder.rmdir()
        return {"removed_mb": size / 1e6}


def is_emulated() -> bool:
    """Whether this processor is emulated by one of another kind, as by qemu, where the kernel tells its own."""
    return KERNEL_ARCH.exists() and family(KERNEL_ARCH.read_text().strip()) != family(platform.machine())


def family(arch: str) -> str:
    """What processors are called that run each other's programs, such as 32-bit ones on a 64-bit kernel."""
    if arch.startswith(("arm", "aarch64")):
        return "arm"
    return "x86" if arch in ("x86_64", "i386", "i486", "i586", "i686") else arch


def _opened(file: str) -> int:
    """The descriptor of a file that every user may write, which is made if it is not there."""
    try:
        return os.open(file, os.O_RDWR)  # Linux lets no user create what another one has made in /tmp
    except FileNotFoundError:
        return os.open(file, os.O_RDWR | os.O_CREAT, 0o666)


def _holder(about: Path) -> str:
    try:
        values = json.loads(about.read_text())
        return f"process {values['process']} (since {values['since']}: {values['command']})"
    except (OSError, ValueError, KeyError):
        return "another process"


def main(folder: str) -> None:
    """Answer the questions of whoever is at the other end of the connection until that ends."""
    answers, asked, keeper = private_output(), questions(), Keeper(Path(folder))
    for question in asked:
        answer, _ = told(getattr(keeper, question.pop("command")), **question)
        tell(answer, answers)
