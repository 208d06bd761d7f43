"""The measuring child: a process that imports one engine, loads networks and answers its parent's questions about them.

It imports nothing that the engine does not need, so that times and memory are the engine's own.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from qexp.data.decoded import DecodedPart
from qexp.data.pixels import normalise
from qexp.measure import timing
from qexp.questions import questions
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
        """Answer as soon as the engine is imported."""
        return {}

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
        if count is not None:
            indices = indices[np.unique(np.linspace(0, len(indices) - 1, count).round().astype(int))]
        logits, preprocessing = [], Preprocessing.from_json(how)
        began = told = time.perf_counter()
        for start in range(0, len(indices), batch):
            if time.perf_counter() - told > TOLD_EVERY_S:
                self.tell({"done": start, "total": len(indices)})
                told = time.perf_counter()
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

    return _told(imported)


def serve(made: tuple[dict[str, Any], Any]) -> None:
    """Answer the parent's questions about networks on the engine that `prepared` made."""
    answers, asked = _answers(), questions()
    _answer(asked, answers, made)


def main() -> None:
    answers, asked = _answers(), questions()  # before the engine is imported, which takes seconds
    _answer(asked, answers, prepared(**json.loads(sys.argv[1])))


def _answers() -> TextIO:
    """A private copy of the standard output, since libraries may print to that itself."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _answer(asked: Iterator[dict[str, Any]], answers: TextIO, made: tuple[dict[str, Any], Any]) -> None:
    def tell(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    answer, engine = made
    session = Session(engine, tell) if engine else None
    for question in asked:
        if session is not None:
            answer, _ = _told(getattr(session, question.pop("command")), **question)
        tell(answer)


def _told(function: Any, **arguments: Any) -> tuple[dict[str, Any], Any]:
    """Call a function, and give the answer to the parent (the message if it fails) and what the function returned."""
    try:
        result = function(**arguments)
        return result if isinstance(result, dict) else {}, result
    except MemoryError:
        return {"error": "out of memory: an allocation was refused"}, None
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {str(error)[:500]}"}, None


if __name__ == "__main__":
    main()
