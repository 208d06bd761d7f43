"""The machine on which candidates are loaded, timed and watched."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from qexp.engine.base import Engine
from qexp.launch import Child
from qexp.measure.children import PERSISTENT, Limits, forked_child
from qexp.measure.disturbance import Watch, free_cores
from qexp.measure.host_lock import alone_on_host
from qexp.measure.images import EvaluationSet
from qexp.measure.machine import environment, physical_cores, place
from qexp.measure.timing import Watched
from qexp.records import LOCAL
from qexp.types import DataSpec, UserError

Told = Callable[[int, int], None]  # images that are done, and all
Result = TypeVar("Result")


class Device:
    """This machine, and the base of those that stand in for it. qexp.device has one in each file.

    Attributes:
        name: What records and tables call it.
        here: Whether it is the machine on which qexp runs, where artifacts are made and accuracy is measured.
        parity_images: The most images on which a candidate is compared with its reference, or None for no limit.
        accuracy_images: Where it is not this machine: how many test images it classifies itself. None: accuracy is that
            of the same file on this machine.
        emulated: Whether its processor is emulated, so that its times mean nothing.
    """

    name = LOCAL
    here = True
    parity_images: int | None = None
    accuracy_images: int | None = None
    emulated = False

    def connect(self) -> None:
        """Reach it, which is done once.

        Raises:
            ConnectionLost: It cannot be reached now.
            UserError: It can never be reached like this, or is not able to run qexp.
        """

    @property
    def decides(self) -> dict[str, Any]:
        """What decides results beside `place`, for their keys. Empty for this machine."""
        return {}

    def place(self) -> dict[str, Any]:
        """What distinguishes it from other machines, on which results would differ."""
        return place()

    def environment(self, root: Path) -> dict[str, Any]:
        """Its description for records, and the commit of qexp's repository `root`."""
        return environment(root)

    def physical_cores(self) -> int:
        return physical_cores()

    def free_cores(self) -> float | None:
        """How many of its cores nobody uses now. None where nothing tells."""
        return free_cores()

    def check(self, engine: Engine) -> None:
        """Check that an engine runs there.

        Raises:
            Unsupported: Its library is not installed, say.
        """
        engine.check_machine()

    def child(self, engine: Engine, threads: int, limits: Limits, persistent: bool) -> Child:
        """Start a measuring child there, or take one that was kept if it may be `persistent`."""
        return (PERSISTENT.get if persistent else forked_child)(engine, threads, limits)

    def file(self, file: Path) -> str:
        """Where a child there finds a file of this machine. It is sent if need be."""
        return str(file)

    def logits(
        self, child: Child, images: EvaluationSet, data: DataSpec, batch: int, count: int | None, told: Told
    ) -> tuple[np.ndarray, float]:
        """Let a child compute the logits of images.

        Args:
            child: The child, in which the network is loaded.
            images: The images.
            data: What the network knows of them.
            batch: Images per call.
            count: Number of images to take, spread evenly, or None for all.
            told: Called with how many images are done, and how many there are.

        Returns:
            logits[N,K] float32, and the seconds that normalising and computing took.
        """
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "logits.npy"
            answer = child.ask(
                "predict", told, folder=str(images.folder), part=images.part, chosen=str(images.chosen), count=count,
                how=asdict(data.preprocessing), batch=batch, out=str(out),
            )  # fmt: skip
            return np.load(out), float(answer["seconds"])

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold its lock for measurements, because two at the same time would disturb each other."""
        with alone_on_host():
            yield

    def watch(self, processes: Callable[[], Iterable[int]], threads: int) -> Watched:
        """Tell whether processes there, which are timed one after the other on so many threads, are disturbed."""
        return Watch(processes, threads, self.physical_cores())

    def steadily(self, run: Callable[[], Result]) -> Result:
        """Call a function that uses the device, again if the connection to it was lost meanwhile.

        Raises:
            ConnectionLost: It was lost too often, or cannot be made again.
        """
        return run()

    def clean(self) -> float:
        """Remove everything that was sent there, and give how much that was in MB.

        Raises:
            UserError: Nothing is sent to this machine.
        """
        raise UserError(f"device={self.name} keeps nothing: qexp runs there itself.")

    def close(self) -> None:
        """End everything that was started on another machine."""


HERE = Device()
