"""An artifact, which is a compressed network in a folder, and what describes it.

The module imports nothing heavy, so that a measuring child process can import it at no cost.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qexp.types import DataSpec, UserError, other_version


@dataclass(frozen=True)
class EngineSpec:
    """What an engine executes. A method is told before it makes an artifact, and the artifact records what was used.

    In the spec of an artifact, an empty field means that the artifact does not depend on it.

    Attributes:
        formats: File formats of the graph that the engine reads: `pt2` (torch.export), `onnx` or `torchscript`.
        placement: Where quantize/dequantize pairs stand in the graph: `fused`, `xnnpack`, `ncnn` or
            `x86_inductor`.
        activation: Integers that activations are quantised to: `uint8`, `int8` or `int8_symmetric` (zero point 0).
        half: 16-bit formats that the engine computes in, the preferred one first.
        kernels: Family of integer kernels that a TorchScript is packed for.
    """

    formats: tuple[str, ...] = ("pt2",)
    placement: str = "fused"
    activation: str = "uint8"
    half: tuple[str, ...] = ()
    kernels: str = ""

    def reads(self, made_for: EngineSpec) -> bool:
        """Whether an engine with this spec executes an artifact that was made for `made_for`."""
        choices = (
            (made_for.placement, self.placement),
            (made_for.activation, self.activation),
            (made_for.kernels, self.kernels),
        )
        return (
            made_for.formats[0] in self.formats
            and {*made_for.half} <= {*self.half}
            and all(made in ("", own) for made, own in choices)
        )

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> EngineSpec:
        tuples: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**tuples)


@dataclass(frozen=True)
class Layer:
    """One layer with weights.

    Attributes:
        parameters: Number of weights and biases.
        macs: Multiply-accumulate operations for one image.
        weight: Number format of the weights that the layer really computes in: `float32`, `float16`, `int8`, ...
        activation: Number format of the activations that it really computes in.
    """

    name: str
    kind: str
    parameters: int
    macs: int
    weight: str = "float32"
    activation: str = "float32"

    @property
    def quantized(self) -> bool:
        return self.weight != "float32"


@dataclass(frozen=True)
class FloatIslands:
    """What computes in floating point in a graph of integers.

    Attributes:
        operators: Number of operators.
        conversions: Number of tensors that are converted between them and integers.
    """

    operators: int
    conversions: int


@dataclass(frozen=True)
class Executable:
    """A file of an artifact, and the engine that loads it.

    Attributes:
        engine: Name of the engine.
        target: Dotted name of the engine's class.
        options: Arguments of that class.
        file: Name of the file in the artifact's folder.
        batch: Images per call that the file was asked for. Engines that take another number read it from the file.
        threads: Threads that the file was asked for.
        key: Key of everything that decides what the engine writes into the file. Empty if the file is the graph itself,
            and in files of earlier versions.
    """

    engine: str
    target: str
    options: dict[str, Any]
    file: str
    batch: int
    threads: int
    key: str = ""


@dataclass(frozen=True)
class Artifact:
    """A compressed network in a folder that is complete on its own.

    Attributes:
        key: Name of the folder, made from everything that decides what the artifact is.
        engine_spec: Which engines it was made for.
        graph: Name of the file that holds the network.
        bits: Bits of the method, or `auto`.
        label: What tables call the result of the method.
        parameters: Parameters of the whole network, without pruned channels.
        macs: Multiply-accumulate operations of the whole network for one image, without pruned channels.
        packed_bytes: Size of the network if every tensor took exactly its bits.
        reference: Name of the folder, beside this one, that holds the fp32 artifact of the same baseline.
        files: SHA-256 (hex) of each file by name.
        source: Where the weights come from.
        simulated: Whether no kernel computes in its number formats, so that latency means nothing.
        random_weights: Whether the weights are random, so that accuracy means nothing.
        executables: The files that engines load, one entry for each engine, its options and its file. Empty in
            artifacts of earlier versions.
        coded: Whether the weights in the graph are stored as qexp.coding codes them, and decoded when they are loaded.
        sparsity: Share of zeros among the graph's fp32 weights, or None if there are no such weights.
        notes: What records say of the artifact, by name.
        islands: What computes in floating point, or None if that is all, or is not known.
        product_macs: Multiply-accumulate operations, among `macs`, of products of activations, as in attention, that
            compute in the number formats of the method.
    """

    folder: Path
    key: str
    engine_spec: EngineSpec
    graph: str
    model: str
    method: str
    bits: int | str
    label: str
    data: DataSpec
    layers: tuple[Layer, ...]
    parameters: int
    macs: int
    packed_bytes: int
    reference: str
    files: dict[str, str]
    source: dict[str, Any]
    versions: dict[str, str]
    simulated: bool = False
    random_weights: bool = False
    executables: tuple[Executable, ...] = ()
    coded: bool = False
    sparsity: float | None = None
    notes: dict[str, str] = field(default_factory=dict)
    islands: FloatIslands | None = None
    product_macs: int = 0

    @classmethod
    def read(cls, folder: Path) -> Artifact:
        """Read the description of the artifact in a folder. Its other files are checked by `files.check_digests`.

        Raises:
            UserError: The folder holds no artifact.
        """
        versions = None
        try:
            values = json.loads((folder / "artifact.json").read_text())
            versions = values["versions"]
            values["data"] = DataSpec.from_json(values["data"])
            if "form" in values:  # as version 0.1 called it at first
                values["engine_spec"] = values.pop("form")
            values["engine_spec"] = EngineSpec.from_json(values["engine_spec"])
            values["layers"] = tuple(Layer(**layer) for layer in values["layers"])
            values["executables"] = tuple(Executable(**executable) for executable in values.get("executables", ()))
            values["islands"] = FloatIslands(**values["islands"]) if values.get("islands") else None
            return cls(folder=folder, **values)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder} holds no artifact: {error}.{other_version(versions)} "
                "Give one that compress.py wrote, below outputs/artifacts."
            ) from error

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        del values["folder"]
        return values

    @property
    def params(self) -> dict[str, Any]:
        """What a record and a table say of the artifact."""
        data = {"data": self.data.name, "image_size": self.data.image_size}
        return {"model": self.model, **data, "method": self.method, "bits": self.bits, "label": self.label}

    @property
    def has_qdq(self) -> bool:
        """Whether the graph spells out the integer arithmetic, so that all engines have to give the same answers."""
        return self.engine_spec.formats == ("pt2",) and any(layer.weight.startswith("int") for layer in self.layers)

    @property
    def quantized_macs(self) -> int:
        """Multiply-accumulate operations for one image that compute in the number formats of the method."""
        return self.product_macs + sum(layer.macs for layer in self.layers if layer.quantized)

    @property
    def has_accuracy(self) -> bool:
        """Whether accuracy means something, which it does not for pretend images or random weights."""
        return not self.data.pretend and not self.random_weights
