"""A child process that answers one question at a time, within limits of time and memory."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import psutil


class ChildFailed(Exception):
    """The child crashed, hung, used too much memory or reported an error. The message says which."""


class Child:
    """Runs `python -m MODULE ARGUMENT`, which answers each line of JSON on its input with a line of JSON on its output.

    Before its answer it may say how far it is, in lines of its own, from which time counts anew. A child that exceeds a
    limit is killed. A child that reports an error itself can be asked again.

    Args:
        module: Dotted name of the module to run.
        argument: Value that the module is given, as JSON.
        threads: Number of threads of OpenMP and of MKL.
        timeout_s: Seconds that the child may take to answer, or to say how far it is.
        memory_mb: Resident memory that the child may hold, in MB (10^6 bytes), or None for no limit.
    """

    def __init__(self, module: str, argument: Any, threads: int, timeout_s: float, memory_mb: float | None):
        self.timeout_s, self.memory_mb = timeout_s, memory_mb
        self._received = b""  # of its answers, what was not read yet
        self.holds: object = None  # kept for the caller: what the child was last told to load
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by stop)
        # It finds what this process finds, wherever that was started from: qexp, and modules of the user's own.
        path = os.pathsep.join(place or os.getcwd() for place in sys.path)
        environment = {
            **os.environ,
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(argument)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.errors, env=environment, process_group=0,
        )  # fmt: skip

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def ask(
        self, command: str, told: Callable[[int, int], None] = lambda done, total: None, **arguments: Any
    ) -> dict[str, Any]:
        """Send a command to the child and wait for its answer.

        Args:
            command: Name of the command.
            told: Called whenever the child says how much it has done, and how much there is to do.
            **arguments: What the command is given, as JSON values.

        Returns:
            The child's answer.

        Raises:
            ChildFailed: The child crashed, hung, used too much memory or reported an error.
        """
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps({"command": command, **arguments}).encode() + b"\n")
            self.process.stdin.flush()
            while "done" in (answer := json.loads(self._read_line(command))):
                told(answer["done"], answer["total"])
        except BrokenPipeError:
            raise self._ended() from None
        except KeyboardInterrupt:
            self.stop()  # or its late answer would pass for the answer to the next question
            raise
        if "error" in answer:
            raise ChildFailed(answer["error"])
        return answer

    def _read_line(self, command: str) -> bytes:
        deadline = time.monotonic() + self.timeout_s
        with selectors.DefaultSelector() as selector:
            assert self.process.stdout
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._received:
                if selector.select(timeout=0.1):
                    # A buffered reader would keep a second line from the selector.
                    if not (more := os.read(self.process.stdout.fileno(), 1 << 16)):
                        raise self._ended()
                    self._received += more
                    continue
                if time.monotonic() > deadline:
                    self.stop()
                    raise ChildFailed(f"hung: no answer to {command!r} within {self.timeout_s:g} s (measure.timeout_s)")
                self._check_memory()
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _check_memory(self) -> None:
        if self.memory_mb is None:
            return
        try:
            used = psutil.Process(self.process.pid).memory_info().rss / 1e6
        except psutil.NoSuchProcess:
            return
        if used > self.memory_mb:
            self.stop()
            raise ChildFailed(
                f"out of memory: it held {used:.0f} MB, more than {self.memory_mb:g} MB (measure.memory_mb)"
            )

    def _ended(self) -> ChildFailed:
        """Explain why the child is gone, and quote the last lines that it wrote to its standard error."""
        code = self.process.wait()
        self.errors.seek(0)
        last = self.errors.read().decode(errors="replace").strip().splitlines()[-3:]
        said = f": {' | '.join(last)}" if last else ""
        if code == -signal.SIGKILL:
            return ChildFailed(f"killed by SIGKILL, as the system does when memory runs out{said}")
        if code < 0:
            return ChildFailed(f"crashed with {signal.Signals(-code).name}{said}")
        return ChildFailed(f"ended with exit code {code}{said}")

    def stop(self) -> None:
        """Kill the child and the processes that it started. Further calls do nothing."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            if stream:
                with contextlib.suppress(BrokenPipeError):  # the child did not live to read the last question
                    stream.close()
