"""Engines without torch whose time, memory and end are known, to measure the instruments with."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from qexp.artifact import Artifact, EngineSpec
from qexp.engine.base import Engine, Forward

CLASSES = 6


class Fake(Engine):
    """Calls that do nothing; the base of the others. They take any graph for theirs, and few of them open it."""

    name = "fake"
    spec = EngineSpec()
    file = "model.pt2"
    packages = ("numpy",)

    def import_libraries(self) -> None:
        pass

    def load(self, file: Path, threads: int) -> Forward:
        return self.call

    def call(self, x: np.ndarray) -> np.ndarray:
        return np.ones((len(x), CLASSES), np.float32)


class Scripted(Fake):
    """The base of engines that move the child's clock themselves.

    A loaded machine then reads the same as an idle one.
    """

    now_ns = 0

    def import_libraries(self) -> None:
        time.perf_counter, time.perf_counter_ns = lambda: self.now_ns / 1e9, lambda: self.now_ns

    def pass_time(self, ms: float) -> None:
        self.now_ns += round(1e6 * ms)


class Takes(Scripted):
    """Every call takes `ms`."""

    name = "takes"

    def __init__(self, ms: float):
        self.ms = ms

    def call(self, x: np.ndarray) -> np.ndarray:
        self.pass_time(self.ms)
        return super().call(x)


class TakesToo(Takes):
    """Another engine that takes its time."""

    name = "takes_too"


class SlowStart(Scripted):
    """Loading and the first call each take their milliseconds, later calls one."""

    def __init__(self, load_ms: float, first_ms: float):
        self.load_ms, self.first_ms = load_ms, first_ms

    def load(self, file: Path, threads: int) -> Forward:
        self.pass_time(self.load_ms)
        self.pending = [self.first_ms]
        return self.call

    def call(self, x: np.ndarray) -> np.ndarray:
        self.pass_time(self.pending.pop() if self.pending else 1)
        return super().call(x)


class Sleeps(Fake):
    """Every call really sleeps for `ms`, or longer where the machine is busy."""

    def __init__(self, ms: float):
        self.ms = ms

    def call(self, x: np.ndarray) -> np.ndarray:
        time.sleep(self.ms / 1000)
        return super().call(x)


class Logs(Fake):
    """Takes its time to import, and tells the file `log` when it has imported and when it has loaded."""

    def __init__(self, log: str, import_ms: float):
        self.log, self.import_ms = log, import_ms

    def import_libraries(self) -> None:
        time.sleep(self.import_ms / 1000)
        self.tell("imported")

    def load(self, file: Path, threads: int) -> Forward:
        self.tell("loaded")
        return self.call

    def tell(self, what: str) -> None:
        with open(self.log, "a") as stream:
            stream.write(f"{what}\n")


class Holds(Fake):
    """Uses megabytes (10^6 bytes).

    Attributes:
        held: What it holds once it has loaded.
        spike: What it takes for a moment while it loads.
        imports: What it takes for a moment while it imports.
        device: What it takes of an accelerator, if it has one.
    """

    def __init__(self, held: int = 0, spike: int = 0, imports: int = 0, device: float | None = None):
        self.held, self.spike, self.imports, self.device = held, spike, imports, device

    def import_libraries(self) -> None:
        np.ones(self.imports * 1_000_000, np.uint8)

    def load(self, file: Path, threads: int) -> Forward:
        np.ones(self.spike * 1_000_000, np.uint8)
        self.kept = np.ones(self.held * 1_000_000, np.uint8)
        return self.call

    def device_memory_mb(self) -> float | None:
        return self.device


class Missing(Fake):
    """Is not installed."""

    name = "missing"
    packages = ("numpy", "no_such_library")


class Fails(Fake):
    """Ends in the way that `how` names, while it imports, or else at its first call."""

    name = "fails"

    def __init__(self, how: str, importing: bool = False):
        self.how, self.importing = how, importing

    def import_libraries(self) -> None:
        if self.importing:
            getattr(self, self.how)()

    def call(self, x: np.ndarray) -> np.ndarray:
        getattr(self, self.how)()
        return super().call(x)

    def survive(self) -> None:
        pass

    def segfault(self) -> None:
        ctypes.string_at(0)

    def hang(self) -> None:
        time.sleep(3600)

    def eat(self) -> None:
        eaten = []
        while True:
            eaten.append(np.ones(10_000_000, np.uint8))
            time.sleep(0.002)

    def refuse(self) -> None:
        raise MemoryError

    def error(self) -> None:
        raise ValueError("the tensor is of the wrong colour")

    def leave(self) -> None:
        print("no licence found", file=sys.stderr, flush=True)
        os._exit(3)


class Chatters(Fake):
    """Writes to standard output in three ways."""

    def call(self, x: np.ndarray) -> np.ndarray:
        print('{"load_ms": -1}', flush=True)
        os.write(1, b"from C\n")
        subprocess.run(["echo", "from a process"], check=True)
        return super().call(x)


class Tells(Fake):
    """Its profile is what it knows of its process: modules, options, and the id of a process that it started."""

    def __init__(self, numbers: list[int] | None = None, flag: bool = False):
        self.numbers, self.flag = numbers, flag

    def operators(self, file: Path, threads: int, forward: Forward, x: np.ndarray) -> dict[str, Any]:
        helper = subprocess.Popen(["sleep", "3600"])
        known = {
            "modules": sorted(sys.modules),
            "options": [self.numbers, self.flag],
            "helper": helper.pid,
            "shape": x.shape,
        }
        return {"text": json.dumps(known), "rows": [{"name": "relu", "calls": 2}], "allocated_mib": 2.5}


class Scores(Fake):
    """A linear classifier of the mean colour, whose file holds weights[C,K].

    Attributes:
        log: A file that grows by one line per call, or "" for none.
        sign: What the weights are multiplied by.
        bias: What is added to the first class.
    """

    name = "scores"

    def __init__(self, log: str = "", sign: int = 1, bias: float = 0):
        self.log, self.sign, self.bias = log, sign, bias

    def load(self, file: Path, threads: int) -> Forward:
        with file.open("rb") as stream:
            self.weights = self.sign * np.load(stream)
        return self.call

    def call(self, x: np.ndarray) -> np.ndarray:
        if self.log:
            with open(self.log, "a") as stream:
                stream.write(f"{len(x)}\n")
        return (x.mean((2, 3)) @ self.weights + self.bias * np.eye(CLASSES)[0]).astype(np.float32)


class Profiled(Scores):
    """Has a profile, and memory of an accelerator."""

    name = "profiled"

    def operators(self, file: Path, threads: int, run: Forward, x: np.ndarray) -> dict[str, Any]:
        return {"text": "", "rows": [], "allocated_mib": 2.5}

    def device_memory_mb(self) -> float | None:
        return 3.0


class Says(Fake):
    """Gives every image the class `answer`."""

    name = "says"

    def __init__(self, answer: int):
        self.answer = answer

    def call(self, x: np.ndarray) -> np.ndarray:
        return np.tile(np.eye(CLASSES, dtype=np.float32)[self.answer], (len(x), 1))


class Writes(Fake):
    """Has to lower an artifact first, slowly, and keeps a list of the files it wrote."""

    name = "writes"
    file = "model.fake"
    written: list[Path] = []

    def write(self, artifact: Artifact, graph: Path, file: Path, batch: int, threads: int) -> None:
        self.written.append(file)
        time.sleep(0.2)
        file.write_bytes(b"lowered")


class MadeFor(Fake):
    """Has a file of its own for each number of images and threads.

    It has 1000 bytes for each image, and one for each thread.
    """

    name = "made_for"
    file = "model-{batch}-{threads}.fake"

    def write(self, artifact: Artifact, graph: Path, file: Path, batch: int, threads: int) -> None:
        file.write_bytes(bytes(1000 * batch + threads))
