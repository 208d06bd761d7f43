"""The base class of methods, which change the numbers of a trained network and write a graph that engines run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from qexp.artifact import EngineSpec, FloatIslands, Layer
from qexp.data.base import ImageData
from qexp.keys import plain
from qexp.method.bits import BitWidths
from qexp.method.layers_csv import Statistics
from qexp.types import Unsupported

# The spec of a graph without quantize/dequantize pairs, which is the same for all engines.
ANY_ENGINE = EngineSpec(placement="", activation="")


@dataclass(frozen=True)
class Compressed:
    """What a method wrote into an artifact's folder.

    Attributes:
        graph: File name of the graph.
        layers: The layers of the network, each with its number formats.
        simulated: Whether no kernel computes in these formats, so that latency means nothing.
        files: Names of the other files that lie beside the graph.
        label: How tables name the artifact, if this is known only now. If it is empty, they use the method's label.
        statistics: Numbers for layers.csv, by layer and by column.
        notes: What records say about the artifact, by name.
        network: The fp32 network that the graph was made from, or None if it is the one that the method was given.
        islands: What computes in floating point in a graph of integers, or None for other graphs.
        product_macs: Multiply-accumulates of products of activations, as in attention, that compute in the number
            formats of the method, for one image.
    """

    graph: str
    layers: tuple[Layer, ...]
    simulated: bool = False
    files: tuple[str, ...] = ()
    label: str = ""
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    network: nn.Module | None = None
    islands: FloatIslands | None = None
    product_macs: int = 0


class Method(ABC):
    """The base of all methods, which change a network's weights or number formats.

    All attributes of a method's instance decide what it makes, and its artifacts are known by them, except for those
    that `indifferent` names. They must have values that `qexp.keys.plain` takes.

    Attributes:
        name: The method's name, as in conf/method.
        format: The format of the graph that it writes.
        supported_bits: The numbers that `bits` may be. The first one is meant by `auto`.
        torchscript: Its classic torch.ao counterpart, for engines that read TorchScript only.
        trains: Whether it trains on the training images, so that their order and augmentation decide too.
        calibrates: Whether it finds ranges on calibration images, so that tables say if those were generated.
        teacher: The uncompressed network to distil from, if it is not the one that `apply` is given.
        since: Checkpoints of an interrupted training that are older than this time, in nanoseconds, do not count.
        indifferent: Names of attributes that do not decide the result.
    """

    name: str
    format = "pt2"
    supported_bits: tuple[int, ...] = (8,)
    torchscript: Method | None = None
    trains = False
    calibrates = False
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
        """The attributes that decide the result, as plain values.

        Raises:
            TypeError: No key can be made of an attribute that `indifferent` does not name.
        """
        own = type(self).__qualname__
        return {
            name: plain(value, f"{own}.{name}") for name, value in vars(self).items() if name not in self.indifferent
        }

    def label(self, engine_spec: EngineSpec) -> str:
        """How tables name the artifact for a resolved `engine_spec`, such as `static int8`."""
        return f"{self.name} int{self.bits}"

    def resolve(self, engine_spec: EngineSpec) -> EngineSpec:
        """Reduce what an engine asks for to what decides the artifact. Engines for which that is the same share one.

        Raises:
            Unsupported: This method cannot give what the engine asks for. The message says why.
        """
        if self.bits not in self.supported_bits:
            known = " and ".join(map(str, self.supported_bits))
            raise Unsupported(f"{self.name} works at {known} bits, not at {self.bits}")
        return replace(ANY_ENGINE, formats=(self.format,))

    @abstractmethod
    def apply(self, network: nn.Module, data: ImageData, engine_spec: EngineSpec, folder: Path) -> Compressed:
        """Compress a network into a folder. Methods never time or log anything here.

        Args:
            network: The trained network in eval mode, which is not changed.
            data: The dataset that it was trained on.
            engine_spec: What the engines ask for, as `resolve` returned it.
            folder: The folder to write the artifact's files to.
        """

    def compress(
        self, network: nn.Module, data: ImageData, engine_spec: EngineSpec, folder: Path, source: dict[str, Any]
    ) -> Compressed:
        """Call `apply`. Methods that must know where the weights come from override this.

        The arguments are those of `apply` and, as `source`, the identity of the weights that `make_artifact` takes.
        """
        return self.apply(network, data, engine_spec, folder)


def counterpart(method: Method, engine_spec: EngineSpec) -> Method:
    """Choose the method itself or its TorchScript counterpart, whichever writes a format that the engine reads.

    Raises:
        Unsupported: Neither does.
    """
    written = [m for m in (method, method.torchscript) if m]
    for candidate in written:
        if candidate.format in engine_spec.formats:
            return candidate
    gives, reads = (" and ".join(formats) for formats in ([m.format for m in written], engine_spec.formats))
    raise Unsupported(f"{method.name} gives {gives}, and this engine reads {reads}")
