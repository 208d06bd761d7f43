"""What a method is: it changes the numbers of a trained network, and writes a graph that engines run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from qexp.data.base import ImageData
from qexp.keys import plain
from qexp.method.bits import BitWidths
from qexp.method.layers_csv import Statistics
from qexp.types import EngineSpec, Layer, Unsupported

ANY_ENGINE = EngineSpec(
    placement="", activation=""
)  # of a graph without quantize/dequantize pairs, the same for all engines


@dataclass(frozen=True)
class Compressed:
    """What a method wrote into the artifact's folder: the graph's file name and each layer's number formats.

    files: names of what lies beside the graph; label: where it is not the method's, known only now; facts: what layers.csv says of
    each layer, by column; notes: what records say of it, by name; network: the fp32 one that the graph was made from, where it is not
    the one that was given.
    """

    graph: str
    layers: tuple[Layer, ...]
    simulated: bool = False
    files: tuple[str, ...] = ()
    label: str = ""
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    network: nn.Module | None = None


class Method(ABC):
    """What changes a network's numbers.

    All attributes of a method decide what it makes, and its artifacts are known by them, except for those that
    `indifferent` names. They must have values that `qexp.keys.plain` takes.

    Attributes:
        name: The method's name, as in conf/method.
        format: The format of the graph that it writes.
        supported_bits: The numbers that `bits` may be. The first one is meant by `auto`.
        torchscript: Its classic torch.ao counterpart, for engines that read TorchScript only.
        trains: Whether it trains on the training images, so that their order and augmentation decide too.
        teacher: The uncompressed network to distil from, if it is not the one that `apply` is given.
        since: Checkpoints of an interrupted training that are older than this time, in nanoseconds, do not count.
        indifferent: Names of attributes that do not decide the result.
    """

    name: str
    format = "pt2"
    supported_bits: tuple[int, ...] = (8,)
    torchscript: Method | None = None
    trains = False
    teacher: nn.Module | None = None
    since = 0
    indifferent: tuple[str, ...] = ("torchscript", "teacher", "since")

    def __init__(self, bits: int | str):
        self.bits: int | str = self._check_bits(bits)

    def _check_bits(self, bits: int | str) -> int | str:
        if bits == "auto":
            return self.supported_bits[0]
        widths = BitWidths.parse(bits)
        return widths.weight if widths.weight == widths.activation else f"w{widths.weight}a{widths.activation}"

    @property
    def options(self) -> dict[str, Any]:
        """What of its attributes decides the result, in plain values.

        Raises:
            TypeError: No key can be made of an attribute, and `indifferent` does not name it.
        """
        own = type(self).__qualname__
        return {
            name: plain(value, f"{own}.{name}") for name, value in vars(self).items() if name not in self.indifferent
        }

    def label(self, engine_spec: EngineSpec) -> str:
        """How tables name the artifact for settled `wants`, e.g. `static int8`."""
        return f"{self.name} int{self.bits}"

    def resolve(self, engine_spec: EngineSpec) -> EngineSpec:
        """What of `wants` decides the artifact; engines for which it is the same share one.

        Errors: Unsupported, with the reason, where this method cannot give what the engine wants.
        """
        if self.bits not in self.supported_bits:
            known = " and ".join(map(str, self.supported_bits))
            raise Unsupported(f"{self.name} works at {known} bits, not at {self.bits}")
        return replace(ANY_ENGINE, formats=(self.format,))

    @abstractmethod
    def apply(self, network: nn.Module, data: ImageData, engine_spec: EngineSpec, folder: Path) -> Compressed:
        """Compress the network (in eval mode, not changed) into `folder` for settled `wants`. Never times, never logs."""

    def compress(
        self, network: nn.Module, data: ImageData, engine_spec: EngineSpec, folder: Path, source: dict[str, Any]
    ) -> Compressed:
        """`apply`, for methods that must know where the weights come from, as of `make_artifact`."""
        return self.apply(network, data, engine_spec, folder)


def counterpart(method: Method, engine_spec: EngineSpec) -> Method:
    """`method` itself or its TorchScript counterpart, whichever writes what the engine reads. Errors: Unsupported for neither."""
    written = [m for m in (method, method.torchscript) if m]
    for candidate in written:
        if candidate.format in engine_spec.formats:
            return candidate
    gives, reads = (" and ".join(formats) for formats in ([m.format for m in written], engine_spec.formats))
    raise Unsupported(f"{method.name} gives {gives}, and this engine reads {reads}")
