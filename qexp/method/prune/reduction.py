"""The base of methods that leave fewer operations or parameters, until the network is as much smaller as asked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from qexp.artifact import Artifact, EngineSpec
from qexp.data.base import ImageData
from qexp.method.artifacts import write_artifact
from qexp.method.base import ANY_ENGINE, Compressed, Method
from qexp.method.fine_tuning import FineTuning
from qexp.method.graph import count_macs, save_fp32
from qexp.method.prune.base import NetworkMethod, restore, save_weights
from qexp.types import UserError, nearest

TARGETS = {"macs": "MACs", "parameters": "parameters", "latency": "latency"}
SCOPES = ("global", "layer")


class Timer(Protocol):
    """Tells how much faster an engine runs one network than another."""

    @property
    def options(self) -> dict[str, Any]:
        """What decides its answers, as plain values."""

    def speedup(self, candidate: Artifact, reference: Artifact) -> float: ...


class Reduction(NetworkMethod):
    """A method that makes a network as many times smaller or faster as asked, by as few of its steps as that needs.

    Args:
        recipe: How to fine-tune what is left.
        ratio: How many times less of the target the network shall have.
        target: What is reduced, one of TARGETS.
        scope: Where steps are taken first, one of SCOPES.
        timer: Measures the target `latency`.

    Raises:
        UserError: An option is unknown or out of range, or the target `latency` has no timer.
    """

    def __init__(self, recipe: FineTuning, ratio: float, target: str, scope: str, timer: Timer | None):
        super().__init__(recipe, coded=False)
        self.check_choice("target", target, TARGETS)
        self.check_choice("scope", scope, SCOPES)
        if ratio <= 1:
            raise UserError(
                f"{self.name}: ratio={ratio} leaves nothing to reduce; give a number above 1, 2 for half of the "
                f"{target}."
            )
        self.ratio, self.target, self.scope = float(ratio), target, scope
        self.timer = timer if target == "latency" else None
        if target == "latency" and self.timer is None:
            raise UserError(f"{self.name}: target=latency needs a timer, as in conf/method/{self.name}.yaml.")

    def check_choice(self, what: str, given: str, known: Iterable[str]) -> None:
        """Raise a UserError unless the option `what` is one of `known`."""
        if given not in known:
            raise UserError(f"{self.name}: there is no {what} {given!r}. {nearest(str(given), known)}")

    def check_whole(self, least: int, **options: Any) -> None:
        """Raise a UserError unless these options are whole numbers of at least `least`."""
        for name, value in options.items():
            if not isinstance(value, int) or value < least:
                raise UserError(
                    f"{self.name}: {name}={value} is out of range; give a whole number of at least {least}."
                )

    def label(self, engine_spec: EngineSpec) -> str:
        return f"{self.name} {self.ratio:g}x {TARGETS[self.target]}"

    def fewest(
        self, make: Callable[[int], nn.Module], steps: int, ratio: float, original: nn.Module, data: ImageData,
        folder: Path, limits: str,
    ) -> int:  # fmt: skip
        """Find by bisection how many steps are needed to reach a ratio.

        Args:
            make: Makes the network after the first steps, of which it is told the number.
            steps: How many there are.
            ratio: How many times less of the target the result shall have than `original`.
            original: The network before any steps.
            data: The images that the networks are for.
            folder: The artifact's folder. Networks to be timed are put beside it for the time being.
            limits: The options that limit what can be reached, for the error.

        Raises:
            UserError: The ratio cannot be reached.
        """
        with tempfile.TemporaryDirectory(prefix=".timed-", dir=folder.parent) as scratch:
            reached = partial(self.reached, original=original, data=data, scratch=Path(scratch))
            most = reached(make(steps))
            if most < ratio:
                raise UserError(
                    f"{self.name}: with {limits} at most {most:.2f} times less {TARGETS[self.target]} can be reached, "
                    f"not {ratio:.2f} times. Give less of these, or a smaller ratio."
                )
            low, high = 0, steps
            while high - low > 1:
                middle = (low + high) // 2
                if reached(make(middle)) >= ratio:
                    high = middle
                else:
                    low = middle
        return high

    def reached(self, network: nn.Module, original: nn.Module, data: ImageData, scratch: Path) -> float:
        """How many times less of the target `network` has than `original`. `scratch` is for networks to be timed."""
        if self.timer is not None:
            candidate = to_time(network, data, Path(tempfile.mkdtemp(dir=scratch)) / "candidate")
            return self.timer.speedup(candidate, to_time(original, data, scratch / "reference"))
        measured = [size_of(n, data, self.target) for n in (original, network)]
        return measured[0] / measured[1]


def size_of(network: nn.Module, data: ImageData, target: str) -> int:
    """The number of MACs for one image if the target is `macs`, otherwise the number of parameters."""
    return count_macs(network, data) if target == "macs" else sum(p.numel() for p in network.parameters())


def made_once(file: Path, original: nn.Module, make: Callable[[], nn.Module]) -> nn.Module:
    """Make a network, or read it from a file if it was made before a kill.

    Args:
        file: The file that keeps its weights.
        original: The network that it is made from.
        make: Makes it.
    """
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial_file = file.with_suffix(".partial")
        save_weights(make(), partial_file)
        os.replace(partial_file, file)
    return restore(original, file)


class _AsItIs(Method):
    """Writes a network as it is, as an artifact to be timed."""

    name = "candidate"
    supported_bits = (32,)

    def __init__(self) -> None:
        super().__init__(bits=32)

    def apply(self, network: nn.Module, data: ImageData, engine_spec: EngineSpec, folder: Path) -> Compressed:
        return Compressed("model.pt2", save_fp32(network, data, folder / "model.pt2"))


def to_time(network: nn.Module, data: ImageData, folder: Path) -> Artifact:
    """The artifact of a network in a folder, which is written if it is not there yet."""
    if not folder.exists():
        write_artifact(_AsItIs(), network, data, ANY_ENGINE, {"model": folder.name, "weights": "random"}, folder, "")
    return Artifact.read(folder)
