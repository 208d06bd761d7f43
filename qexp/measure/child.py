"""The measuring child: a process that imports one engine, loads networks and answers its parent's questions about them.

It imports nothing that the engine does not need, so that times and memory are the engine's own.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from qexp.data.decoded import DecodedPart, evenly
from qexp.data.pixels import normalise
from qexp.measure import timing
from qexp.questions import private_output, questions, tell, told
from qexp.types import Preprocessing

if TYPE_CHECKING:
    from qexp.engine.base import Engine

TOLD_EVERY_S = 1.0  # seconds between two times at which the parent is told how far a pass is


class Session:
    """The state between questions. Each public method answers one.

    Args:
        engine: The engine, whose libraries are imported.
        tell: Tells the parent something before the answer.
    """

    def __init__(self, engine: Engine, tell: Callable[[dict[str, Any]], None]):
        self.engine, self.tell = engine, tell
        self.forward: Any = None  # the loaded network
        self.file, self.threads = Path(), 1

    def ready(self) -> dict[str, Any]:
        """Answer as soon as the engine is imported, with the id of this process."""
        return {"process": os.getpid()}

    def start(self, file: str, threads: int, shape: list[int]) -> dict[str, Any]:
        """Load the network and call it a few times.

        Args:
            file: File that the engine loads.
            threads: Threads of the engine.
            shape: Shape [B,C,H,W] of the input of a call.

        Returns:
            `load_ms` and `first_call_ms` in milliseconds, `memory_mb`, the peak of resident memory above that before
            loading, and `device_memory_mb`, the peak of an accelerator's memory. The last two are None if the system
            cannot tell them or there is no such device.
        """
        self.forward, self.file, self.threads = None, Path(file), threads
        self.x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        self.forward, figures = timing.start(lambda: self.engine.open(Path(file), threads), self.x)
        return {**figures, "device_memory_mb": self.engine.device_memory_mb()}

    def window(self, calls: int, seconds: float) -> dict[str, Any]:
        """Milliseconds of at least `calls` calls that together take at least `seconds`."""
        return {"samples": timing.window(self.forward, self.x, calls, seconds)}

    def unload(self) -> dict[str, Any]:
        """Free the memory of the network."""
        self.forward = None
        return {}

    def operators(self) -> dict[str, Any]:
        return {"profile": self.engine.operators(self.file, self.threads, self.forward, self.x)}

    def predict(
        self, folder: str, part: str, chosen: str, count: int | None, how: dict[str, Any], batch: int, out: str
    ) -> dict[str, Any]:
        """Compute logits[N,K] and write them to a file.

        Args:
            folder: Folder of decoded images, as qexp.data.decoded describes it.
            part: Part of the data in that folder.
            chosen: File of the indices of the images to take (.json).
            count: Number of these images to take, spread evenly, or None for all.
            how: The `Preprocessing` of the network.
            batch: Images per call.
            out: File to write the logits to (.npy).

        Returns:
            `seconds`, the time that normalising and computing took.
        """
        images, indices = DecodedPart(Path(folder), part), np.array(json.loads(Path(chosen).read_text()))
        indices = indices[evenly(len(indices), count)]
        logits, preprocessing = [], Preprocessing.from_json(how)
        began = before = time.perf_counter()
        for start in range(0, len(indices), batch):
            if time.perf_counter() - before > TOLD_EVERY_S:
                self.tell({"done": start, "total": len(indices)})
                before = time.perf_counter()
            x = normalise(images.read(indices[start : start + batch]), preprocessing)
            logits.append(np.asarray(self.forward(x)))
        seconds = time.perf_counter() - began
        np.save(out, np.concatenate(logits))
        return {"seconds": seconds}


def prepared(target: str, options: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Make an engine, and import its libraries.

    Args:
        target: Dotted name of the engine's class.
        options: Arguments of that class.

    Returns:
        The answer to the parent (the message if it fails), and the engine or None.
    """

    def imported() -> Engine:
        module, _, name = target.rpartition(".")
        engine: Engine = getattr(importlib.import_module(module), name)(**options)
        engine.import_libraries()
        return engine

    return told(imported)


def serve(made: tuple[dict[str, Any], Any]) -> None:
    """Answer the parent's questions about networks on the engine that `prepared` made."""
    answers, asked = private_output(), questions()
    _answer(asked, answers, made)


def main() -> None:
    answers, asked = private_output(), questions()  # before the engine is imported, which takes seconds
    _answer(asked, answers, prepared(**json.loads(sys.argv[1])))


def _answer(asked: Iterator[dict[str, Any]], answers: TextIO, made: tuple[dict[str, Any], Any]) -> None:
    answer, engine = made
    session = Session(engine, lambda answer: tell(answer, answers)) if engine else None
    for question in asked:
        if session is not None:
            answer, _ = told(getattr(session, question.pop("command")), **question)
        tell(answer, answers)


if __name__ == "__main__":
    main()
