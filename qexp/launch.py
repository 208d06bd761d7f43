"""A child process that answers one question at a time, within limits of time and memory."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, Protocol

import psutil

from qexp import nursery

MOST_BYTES = 16_000_000  # of one answer, and of what a child writes to its standard error


class ChildFailed(Exception):
    """The child crashed, hung, used too much memory or reported an error. The message says which."""


class ConnectionLost(Exception):
    """The machine on which a child ran can no longer be reached. The message says which, and what is known of why."""


class Process(Protocol):
    """What a child needs of `subprocess.Popen`, which processes of a `Nursery` have too."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self) -> int: ...

    def kill(self) -> None: ...


class Origin(Protocol):
    """What makes the process of a child, such as a `Nursery`."""

    def fork(self, streams: tuple[int, int, int]) -> Process:
        """Make a process whose standard input, output and error are the given descriptors."""


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
        origin: What makes the child, which has the same module, argument and threads. None: it is started here.
    """

    limit = "measure.timeout_s"  # what messages call the limit of time

    def __init__(
        self, module: str, argument: Any, threads: int, timeout_s: float, memory_mb: float | None,
        origin: Origin | None = None,
    ):  # fmt: skip
        self.timeout_s, self.memory_mb = timeout_s, memory_mb
        self._received = b""  # of its answers, what was not read yet
        self.holds: object = None  # kept for the caller: what the child was last told to load
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by stop)
        (asked, questions), (answers, answering) = os.pipe(), os.pipe()
        self.questions, self.answers = (
            os.fdopen(questions, "wb", buffering=0), os.fdopen(answers, "rb", buffering=0),
        )  # fmt: skip
        os.set_blocking(questions, False)
        streams = (asked, answering, self.errors.fileno())
        self.process: Process = (
            origin.fork(streams) if origin else _start([module, json.dumps(argument)], threads, streams)
        )
        os.close(asked)
        os.close(answering)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def pid(self) -> int:
        """Its id on the machine on which it runs."""
        return self.process.pid

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
        try:
            self._write(json.dumps({"command": command, **arguments}).encode() + b"\n", command)
            done = -1
            while "done" in (answer := self._read_answer(command)):
                done = self._progress(answer, done)
                told(done, answer["total"])
        except BrokenPipeError:
            raise self._ended() from None
        except KeyboardInterrupt:
            self.stop()  # or its late answer would pass for the answer to the next question
            raise
        if "error" in answer:
            raise ChildFailed(str(answer["error"]))
        return answer

    def _write(self, question: bytes, command: str) -> None:
        """Send a question, however large, to a child that may never read it."""
        deadline = time.monotonic() + self.timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self.questions, selectors.EVENT_WRITE)
            while question:
                if selector.select(timeout=0.1):
                    question = question[os.write(self.questions.fileno(), question[: 1 << 16]) :]
                elif time.monotonic() > deadline:
                    raise self._hung(command)

    def _read_answer(self, command: str) -> dict[str, Any]:
        line = self._read_line(command)
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            self.stop()
            raise ChildFailed(f"answered {command!r} with what is no JSON object: {line[:80]!r}")
        return answer

    def _progress(self, answer: dict[str, Any], before: int) -> int:
        """How far the child says that it is. It has to get further each time, since time then counts anew."""
        done, total = answer["done"], answer.get("total")
        if not (isinstance(done, int) and isinstance(total, int) and before < done <= total):
            self.stop()
            raise ChildFailed(f"said that it has done {done!r:.20} of {total!r:.20}, after {max(before, 0)}")
        return done

    def _read_line(self, command: str) -> bytes:
        deadline = time.monotonic() + self.timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self.answers, selectors.EVENT_READ)
            while b"\n" not in self._received:
                if max(len(self._received), os.fstat(self.errors.fileno()).st_size) > MOST_BYTES:
                    self.stop()
                    raise ChildFailed(f"wrote more than {MOST_BYTES / 1e6:g} MB instead of an answer to {command!r}")
                if selector.select(timeout=0.1):
                    # A buffered reader would keep a second line from the selector.
                    if not (more := os.read(self.answers.fileno(), 1 << 16)):
                        raise self._ended()
                    self._received += more
                    continue
                if time.monotonic() > deadline:
                    raise self._hung(command)
                self._check_memory()
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _hung(self, command: str) -> ChildFailed:
        self.stop()
        return ChildFailed(f"hung: no answer to {command!r} within {self.timeout_s:g} s ({self.limit})")

    def _check_memory(self) -> None:
        if self.memory_mb is None:
            return
        try:
            used = psutil.Process(self.process.pid).memory_info().rss / 1e6
        except psutil.NoSuchProcess:
            return
        if used > self.memory_mb:
            self._too_much(used)

    def _too_much(self, used_mb: float) -> None:
        self.stop()
        raise ChildFailed(
            f"out of memory: it held {used_mb:.0f} MB, more than {self.memory_mb:g} MB (measure.memory_mb)"
        )

    def _ended(self) -> Exception:
        """Explain why the child is gone, and quote the last lines that it wrote to its standard error."""
        return self._explained(self.process.wait(), self._said())

    def _said(self) -> str:
        """The last lines that the child wrote to its standard error."""
        errors = self.errors
        if isinstance(self.process, Forked) and self.process.told is None:  # it ended before it could be forked
            errors = self.process.nursery.errors
        errors.seek(0)
        return " | ".join(errors.read(MOST_BYTES).decode(errors="replace").strip().splitlines()[-3:])

    def _explained(self, code: int, said: str) -> Exception:
        said = f": {said}" if said else ""
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
        for stream in (self.questions, self.answers, self.errors):
            with contextlib.suppress(BrokenPipeError):  # the child did not live to read the last question
                stream.close()


class Nursery:
    """A process of qexp.nursery, which imports what a child needs once, and is forked for each child.

    Its arguments are those of `Child`.
    """

    def __init__(self, module: str, argument: Any, threads: int):
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by stop)
        with theirs, open(os.devnull, "rb") as nothing:
            arguments = [nursery.__name__, str(theirs.fileno()), module, json.dumps(argument)]
            streams = (nothing.fileno(), self.errors.fileno(), self.errors.fileno())
            self.process = _start(arguments, threads, streams, theirs.fileno())
        self.children: list[Forked] = []
        self.expected: Forked | None = None  # the child of which it has not told the id yet
        self.taken = False  # whether it has become a child itself

    @property
    def free(self) -> bool:
        """Whether it can be forked now."""
        self.hear(wait=False)
        return not (self.expected or self.taken) and self.process.poll() is None

    @property
    def idle(self) -> bool:
        """Whether all its children have ended."""
        self.children = [child for child in self.children if child.returncode is None]
        return not self.children

    def fork(self, streams: tuple[int, int, int]) -> Forked:
        """Make a child, whose standard input, output and error are the given descriptors."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the child tells how the nursery has ended
            socket.send_fds(self.socket, [b"{}"], list(streams))
        self.expected = Forked(self)
        self.children.append(self.expected)
        return self.expected

    def hear(self, wait: bool) -> None:
        """Take the id of the child that was asked for last, if it has been told or is waited for."""
        if self.expected and (pid := self._answer(wait)):
            self.expected.told, self.taken, self.expected = pid, pid == self.process.pid, None

    def ask(self, **question: int) -> Any:
        """Its answer to a question, or None if it has ended."""
        self.hear(wait=True)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.send(json.dumps(question).encode())
            return self._answer(wait=True)
        return None

    def _answer(self, wait: bool) -> Any:
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            told = self.socket.recv(4096, 0 if wait else socket.MSG_DONTWAIT)
            return json.loads(told) if told else None
        return None

    def stop(self) -> None:
        """End the process, all of whose children have ended."""
        self.process.kill()
        self.process.wait()
        self.socket.close()
        self.errors.close()


class Forked:
    """A child of a nursery. Until it is forked, its nursery stands for it, which imports what the child needs."""

    def __init__(self, nursery: Nursery):
        self.nursery = nursery
        self.told: int | None = None  # its id
        self.returncode: int | None = None

    @property
    def pid(self) -> int:
        if self.told is None:
            self.nursery.hear(wait=False)
        return self.told or self.nursery.process.pid

    def poll(self) -> int | None:
        return self._end(wait=False)

    def wait(self) -> int:
        code = self._end(wait=True)
        return -signal.SIGKILL if code is None else code  # it was killed, and so was its nursery

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def _end(self, wait: bool) -> int | None:
        if self.returncode is None:
            if self.pid == self.nursery.process.pid:
                self.returncode = self.nursery.process.wait() if wait else self.nursery.process.poll()
            else:
                self.returncode = self.nursery.ask(**{"wait" if wait else "poll": self.pid})
        return self.returncode


def _start(arguments: list[str], threads: int, streams: tuple[int, int, int], *kept: int) -> subprocess.Popen[bytes]:
    """Run `python -m ARGUMENTS` with these descriptors as standard input, output and error, and others to keep."""
    # It finds what this process finds, wherever that was started from: qexp, and modules of the user's own.
    path = os.pathsep.join(place or os.getcwd() for place in sys.path)
    own = {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    asked, answering, errors = streams
    return subprocess.Popen(
        [sys.executable, "-m", *arguments], stdin=asked, stdout=answering, stderr=errors, pass_fds=kept,
        env={**os.environ, **own}, process_group=0,
    )  # fmt: skip
