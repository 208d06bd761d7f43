"""Another machine, reached by the system's ssh. It needs Python, NumPy and the libraries of the engines."""

from __future__ import annotations

import functools
import io
import json
import os
import shlex
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from qexp.data.decoded import DecodedPart, evenly, write_part
from qexp.device.answers import Implausible, check_facts, number, number_or_none, text
from qexp.device.archive import archive_of
from qexp.device.connection import Address, Keeper, RemoteChild
from qexp.device.watch import RemoteWatch
from qexp.engine.base import Engine
from qexp.files import file_digest
from qexp.keys import plain
from qexp.launch import Child, ChildFailed, ConnectionLost
from qexp.measure import child as measuring_child
from qexp.measure import host_lock
from qexp.measure.children import Limits
from qexp.measure.device import Device, Result, Told
from qexp.measure.images import EvaluationSet
from qexp.measure.machine import environment
from qexp.measure.timing import Watched
from qexp.progress import counted, doing
from qexp.records import LOCAL
from qexp.types import DataSpec, Unsupported, UserError, command_line, digest, versions

# What runs there, beside the measuring children, and the engines, all of which are in one archive.
KEEPER, ABLE, ENGINES = "qexp.device.keeper", "qexp.device.able", "qexp.engine"
ABLE_S = 300.0  # seconds that an engine may take to say whether it runs there
HEADER_BYTES = 4096  # more than the header of a file of NumPy takes
MEMORY_EVERY_S = 1.0  # seconds between two questions for the memory of a child


class Ssh(Device):
    """A machine that ssh reaches, as the comments of conf/device/ssh.yaml describe it.

    Raises:
        UserError: An option has a value that it cannot have.
    """

    here = False

    def __init__(
        self, name: str | None, host: str, port: int | None, identity: str | None, ssh: str, python: str, folder: str,
        parity_images: int, accuracy_images: int | None, connect_s: float, silence_s: int, retries: int,
        retry_s: float, emulated: bool | None,
    ):  # fmt: skip
        if host.startswith("-") or not host.strip():
            raise UserError(f"device.host={host!r} is no machine. Give HOST, USER@HOST or a name of ~/.ssh/config.")
        if name == LOCAL:
            raise UserError(f"device.name={name} is the machine of qexp itself. Give the device another name.")
        for option, value in (("parity_images", parity_images), ("accuracy_images", accuracy_images)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise UserError(f"device.{option}={value} is out of range; give a whole number of at least 1.")
        self.name, self.folder, self.connect_s = name or host, folder, connect_s
        self.parity_images, self.accuracy_images = parity_images, accuracy_images
        self.retries, self.retry_s, self.asked_emulated = retries, retry_s, emulated
        # It asks nothing and forwards nothing, and notices soon that the other side is gone.
        options = [
            "-T", "-a", "-x", "-oBatchMode=yes", f"-oConnectTimeout={connect_s:.0f}",
            f"-oServerAliveInterval={max(1, silence_s // 3)}", "-oServerAliveCountMax=3",
        ]  # fmt: skip
        options += [f"-p{port}"] * (port is not None) + (["-i", os.path.expanduser(identity)] if identity else [])
        self.address = Address(self.name, host, (*shlex.split(ssh), *options), python)
        self._keeper: Keeper | None = None
        self._children: list[RemoteChild] = []
        self._facts: dict[str, Any] = {}
        self._asked: RemoteChild | None = None  # who knows which engines run there
        self._code: dict[str, str] = {}  # folders there of the code for engines, by their targets
        self._able: dict[str, str] = {}  # why engines do not run there, or nothing, by what they are

    @property
    def keeper(self) -> Keeper:
        """The keeper there, which is started if none is alive.

        Raises:
            ConnectionLost: The device cannot be reached now, or has restarted since.
            UserError: It can never be reached like this.
        """
        if self._keeper is None:
            with doing(f"Connecting to {self.name}"):
                archive = archive_of([KEEPER])
                self._keeper = Keeper(self.address, self.folder, archive, self.connect_s)
                try:
                    facts = check_facts(self._keeper.ask("facts"))
                except Implausible as error:
                    raise UserError(f"{self.name} cannot be used: it {error}.") from error
            restarted = self._facts and facts["boot"] != self._facts["boot"]
            self._facts = facts
            if restarted:
                raise ChildFailed(f"ended with {self.name}, which has restarted meanwhile")
        return self._keeper

    def connect(self) -> None:
        _ = self.keeper

    @property
    def facts(self) -> dict[str, Any]:
        """What the machine is."""
        _ = self.keeper
        return self._facts

    @property
    def emulated(self) -> bool:  # type: ignore[override]
        return self.facts["emulated"] if self.asked_emulated is None else self.asked_emulated

    @property
    def decides(self) -> dict[str, Any]:
        asked = {
            "parity_images": self.parity_images, "accuracy_images": self.accuracy_images,
            "emulated": self.emulated,
        }  # fmt: skip
        return {"device": {"_target_": f"{type(self).__module__}.{type(self).__qualname__}", **asked}}

    def place(self) -> dict[str, Any]:
        return {
            "device": self.name,
            **{name: self.facts[name] for name in ("host", "cpu", "cores", "python", "versions")},
        }

    def environment(self, root: Path) -> dict[str, Any]:
        known = {name: value for name, value in self._facts.items() if name != "boot"}
        return {**known, "device": self.name, "commit": environment(root)["commit"]}

    def physical_cores(self) -> int:
        return int(self.facts["physical_cores"])

    def free_cores(self) -> float | None:
        return number_or_none(self.keeper.ask("free_cores").get("cores"), "cores")

    def check(self, engine: Engine) -> None:
        if engine.native:
            raise Unsupported(
                f"{engine.name} compiles its file for the processor of this machine, and {self.name} is another one"
            )
        known = digest([engine.target, engine.options])
        if known not in self._able:
            self._able[known] = self.missing(engine)
        if self._able[known]:
            raise Unsupported(self._able[known])

    def missing(self, engine: Engine) -> str:
        """Why an engine does not run there, with the command that changes this, or an empty string if it does."""
        with doing(f"Asking {self.name} for {engine.name}"):
            code = self.code(engine)
            if self._asked is None or self._asked.holds != code:
                self._end_asking()
                self._asked = RemoteChild(self.address, ["-m", ABLE], {"PYTHONPATH": code}, ABLE_S)
                self._asked.holds = code
            told = self._asked.ask("able", target=engine.target, options=engine.options)
        try:
            missing = [name for name in engine.packages if name in told["missing"]]
            reason = text(told["reason"], "reason")
        except (KeyError, TypeError) as error:
            raise UserError(f"{self.name} does not say which engines it has: {told!r:.200}.") from error
        if not missing:
            return reason and f"{self.name}: {reason}"
        return f"{self.name} has no {' and '.join(missing)}: {self.install(missing)}"

    def _end_asking(self) -> None:
        if self._asked is not None:
            self._asked.stop()
            self._asked = None

    def install(self, packages: Iterable[str]) -> str:
        """The command that installs packages there, in the versions that are here."""
        here = versions(*packages)
        wanted = [f"{name}=={here[name].partition('+')[0]}" if name in here else name for name in packages]
        return f"{self.address.by_hand} {self.address.python} -m pip install {' '.join(wanted)}"

    def code(self, engine: Engine) -> str:
        """The folder there of the code that a child with this engine needs."""
        if engine.target not in self._code:
            names = [measuring_child.__name__, ABLE, ENGINES, engine.target]
            self._code[engine.target] = self.keeper.unpack(archive_of(names))
        return self._code[engine.target]

    def child(self, engine: Engine, threads: int, limits: Limits, persistent: bool) -> Child:
        self._end_asking()  # the libraries that it has imported would take memory
        made = plain({"target": engine.target, "options": engine.options}, "engine")
        variables = {
            "PYTHONPATH": self.code(engine), "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads),
        }  # fmt: skip
        words = ["-m", measuring_child.__name__, json.dumps(made)]
        child = RemoteChild(
            self.address, words, variables, limits.timeout_s, limits.memory_mb, self._resident_mb, self._end_of
        )
        self._children.append(child)
        return child

    def _resident_mb(self, process: int) -> float | None:
        time.sleep(MEMORY_EVERY_S)
        return number_or_none(self.keeper.ask("resident_mb", process=process).get("resident_mb"), "resident_mb")

    def _end_of(self, process: int) -> None:
        """Let the keeper end a child, if there still is one. Without a connection, the child has noticed itself."""
        if self._keeper is not None and self._keeper.alive:
            try:
                self._keeper.ask("kill", process=process)
            except (ChildFailed, ConnectionLost):
                self._keeper = None

    def file(self, file: Path) -> str:
        with counted(f"  Bytes of {file.name} to {self.name}") as told:
            return self.keeper.send(file, f"{file_digest(file)}/{file.name}", told)

    def logits(
        self, child: Child, images: EvaluationSet, data: DataSpec, batch: int, count: int | None, told: Told
    ) -> tuple[np.ndarray, float]:
        folder, chosen = self.images(images, count)
        out = text(self.keeper.ask("answer_file").get("file"), "file")
        answer = child.ask(
            "predict", told, folder=folder, part="test", chosen=f"{folder}/chosen.json", count=None,
            how=asdict(data.preprocessing), batch=batch, out=out,
        )  # fmt: skip
        shape = (chosen, data.num_classes)
        stored = self.keeper.receive(out, 8 * shape[0] * shape[1] + HEADER_BYTES)
        try:
            logits = np.load(io.BytesIO(stored), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ChildFailed(f"sent logits that cannot be read: {error}") from error
        if logits.shape != shape or logits.dtype.kind != "f":
            raise ChildFailed(f"sent logits of the shape {logits.shape} and type {logits.dtype}, not {shape} floats")
        return logits.astype(np.float32), float(answer["seconds"])

    def images(self, images: EvaluationSet, count: int | None) -> tuple[str, int]:
        """Send so many images, without their labels.

        Returns:
            Their folder there, and how many they are.
        """
        indices = np.array(json.loads(images.chosen.read_text()))
        indices = indices[evenly(len(indices), count)]
        name = f"images-{digest([images.content, count])[:24]}"
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            pixels = DecodedPart(images.folder, images.part).read(indices)
            write_part(folder, "test", pixels, np.zeros(len(pixels), np.int64))
            (folder / "chosen.json").write_text(json.dumps([*range(len(pixels))]))
            files = sorted(folder.iterdir())
            with counted(f"  Bytes of {len(pixels)} images to {self.name}") as told:
                there = [self.keeper.send(file, f"{name}/{file.name}", told) for file in files]
        return str(Path(there[0]).parent), len(pixels)

    @contextmanager
    def alone(self) -> Iterator[None]:
        holder = f"{command_line()} on {socket.gethostname()}"
        take = functools.partial(
            self.keeper.ask, "lock", file=str(host_lock.HOST_LOCK), patience_s=host_lock.PATIENCE_S, holder=holder
        )
        answer = take()
        if answer.get("taken") is not True:
            whom = text(answer.get("holder"), "holder")
            print(f"  waiting for {whom} to end its measurement on {self.name}", flush=True)
            with doing("Waiting"):
                while take().get("taken") is not True:
                    pass
        try:
            yield
        finally:
            if self._keeper is not None and self._keeper.alive:
                self._keeper.ask("unlock")

    def watch(self, processes: Callable[[], Iterable[int]], threads: int) -> Watched:
        return RemoteWatch(lambda: self.keeper, processes, threads)

    def steadily(self, run: Callable[[], Result]) -> Result:
        for _ in range(self.retries):
            try:
                return run()
            except ConnectionLost as error:
                print(f"  {error}; trying again in {self.retry_s:g} s", flush=True)
                self.close()
                time.sleep(self.retry_s)
        return run()

    def clean(self) -> float:
        return number(self.keeper.ask("clean").get("removed_mb"), "removed_mb")

    def close(self) -> None:
        keeper, self._keeper = self._keeper, None
        self._end_asking()
        for child in self._children:
            child.stop()
        self._children.clear()
        self._code.clear()  # of what is there, nothing is known when the connection is made again
        if keeper is not None:
            keeper.stop()
