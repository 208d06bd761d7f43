"""The nouns of qexp: small frozen dataclasses, validated at birth, that every package shares.

Imports nothing heavy, so that a measuring child process may import it for free.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any


class UserError(Exception):
    """Something the user can put right: the message says what is wrong, what was given and what to do."""


class Unsupported(Exception):
    """A combination that cannot exist (dynamic quantisation to 3 bits); it becomes one `unsupported` row."""


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-serialisable value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def first_line(error: Exception) -> str:
    """What an error says at first, or what it is called if it says nothing."""
    return str(error).partition("\n")[0] or type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names, those most like `name` first: the end of an error about an unknown name."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
    return f"{hint}Known: {', '.join(names)}"


@dataclass(frozen=True)
class DataSpec:
    """What a network and an artifact must know of a dataset.

    mean and std are per channel, of pixel values in 0..1, over the training part.
    `pretend` data has no meaning, so accuracy on it is never reported. split_seed and validation_share decide which training
    images are the validation part. decoder is the key of the code that decoded the images, empty in what earlier
    versions wrote.
    """

    name: str
    class_names: tuple[str, ...]
    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str
    split_seed: int = 0
    pretend: bool = False
    validation_share: float = 0.1
    decoder: str = ""

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise UserError(f"data {self.name!r} has {len(self.class_names)} class(es); a classifier needs at least 2.")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"{self.channels} channels, but {len(self.mean)} means and {len(self.std)} deviations")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return (self.channels, self.image_size, self.image_size)

    @property
    def cache_name(self) -> str:
        """Name of the folder of decoded images."""
        return cache_name(self.name, self.digest, self.decoder)

    @property
    def validation_file(self) -> str:
        """Name of the file in that folder with the indices of the validation part among the training images."""
        return f"validation-{self.split_seed}-{self.validation_share:g}.json"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DataSpec:
        tuples: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**tuples)


def cache_name(data: str, content: str, decoder: str) -> str:
    """Name of the folder of the images of a dataset that were decoded from this content by this code."""
    return "-".join([data, content[:16], *([decoder] if decoder else [])])


@dataclass(frozen=True)
class EngineSpec:
    """What an engine executes, told to the method before it makes an artifact.

    formats: file formats of the graph that it reads: `pt2` (torch.export), `onnx`, `torchscript`; placement: where
    quantize/dequantize pairs stand, `fused` or `x86_inductor`; activation: integers that activations become, `uint8`,
    `int8` or `int8_symmetric` (zero point 0); half: 16-bit formats that it computes in, the favourite first; kernels:
    family of integer kernels that a TorchScript is packed for. As the form of an artifact: what is empty does not matter.
    """

    formats: tuple[str, ...] = ("pt2",)
    placement: str = "fused"
    activation: str = "uint8"
    half: tuple[str, ...] = ()
    kernels: str = ""

    def reads(self, made_for: EngineSpec) -> bool:
        """Whether an engine that wants this executes an artifact made for `form`."""
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
    """One layer with weights, and the number formats it really computes in (`float32`, `float16`, `int8`, ...).

    parameters: weights and biases; macs: multiply-accumulate operations for one image.
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
class Executable:
    """A file of an artifact, and the engine that loads it: its name, its class by dotted name (`target`) and the arguments of that;
    batch, threads: those that the file was asked for; engines that take others read them off the file; key: of all that
    decides what the engine writes into it, empty where the file is the graph itself, and in what earlier versions wrote."""

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

    graph: the file that holds it; engine_spec: what engines it was made for; files: SHA-256 of each file by name; executables: what engines
    load of these, one entry per engine, its options and file; parameters, macs: of the whole network, in which pruned channels are no
    more; packed_bytes: its size at exactly the bits of every tensor; reference: folder name of the fp32 artifact of the same baseline,
    beside this one; simulated: True where no kernel computes in this format, so latency means nothing; coded: True where the graph's
    weights are stored as of qexp.coding, and decoded when loaded; sparsity: share of zeros among the graph's fp32 weights, None where
    there are none; notes: what records say of it, by name.
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
    executables: tuple[Executable, ...] = ()  # which artifacts of earlier versions do not tell
    coded: bool = False
    sparsity: float | None = None
    notes: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Artifact:
        """Errors: UserError where the folder holds no artifact; `files.check_digests` tells whether its files are whole."""
        try:
            values = json.loads((folder / "artifact.json").read_text())
            values["data"] = DataSpec.from_json(values["data"])
            if "form" in values:  # as version 0.1 called it at first
                values["engine_spec"] = values.pop("form")
            values["engine_spec"] = EngineSpec.from_json(values["engine_spec"])
            values["layers"] = tuple(Layer(**layer) for layer in values["layers"])
            values["executables"] = tuple(Executable(**executable) for executable in values.get("executables", ()))
            return cls(folder=folder, **values)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder} holds no artifact: {error}. Give one that compress.py wrote, below outputs/artifacts."
            ) from error

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        del values["folder"]
        return values

    @property
    def params(self) -> dict[str, Any]:
        """What a record and a table say of it."""
        data = {"data": self.data.name, "image_size": self.data.image_size}
        return {"model": self.model, **data, "method": self.method, "bits": self.bits, "label": self.label}

    @property
    def has_qdq(self) -> bool:
        """Whether its graph spells out the integer arithmetic, so that every engine must give the same answer."""
        return self.engine_spec.formats == ("pt2",) and any(layer.weight.startswith("int") for layer in self.layers)

    @property
    def has_accuracy(self) -> bool:
        """False for pretend images and random weights, whose accuracy would mean nothing."""
        return not self.data.pretend and not self.random_weights


@dataclass(frozen=True)
class Measurement:
    """One number; `Metric.of` of qexp.metrics makes it.

    Args:
        kind: How it came about: `measured`, `estimated` or `simulated`.
        description: The fields of its `Metric`, where the table of qexp.metrics does not know it; else empty.
    """

    name: str
    value: float
    unit: str
    kind: str = "measured"
    samples: tuple[float, ...] = ()
    description: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """The one result of a run. status: `finished`, `unsupported` or `failed`, the last two with a reason, or `compressed`, where only
    the artifact was made, which is the reason.

    params: what a table shows (model, data, method, bits, engine, batch_size, threads, seed); config: the resolved one;
    texts: tables for people by file name; environment: machine and versions; notes: why a number is missing, what was left
    out, by its name; reused: the run of an earlier sweep that it was taken from, as `sweeps/SWEEP/JOB`; seconds: that the run took,
    with what was made for it.
    """

    kind: str
    key: str
    sweep: str
    status: str
    reason: str
    label: str
    params: dict[str, Any]
    config: dict[str, Any]
    measurements: tuple[Measurement, ...]
    environment: dict[str, Any]
    command: str
    created: str
    artifact: str = ""
    texts: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    reused: str = ""
    seconds: float = 0.0

    @property
    def metrics(self) -> dict[str, float]:
        return {m.name: m.value for m in self.measurements}

    def to_json(self) -> dict[str, Any]:
        """Measurements of metrics that need no description have none, as in records of earlier versions."""
        values = asdict(self)
        for measurement in values["measurements"]:
            if not measurement["description"]:
                del measurement["description"]
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Record:
        measurements = tuple(Measurement(**{**m, "samples": tuple(m["samples"])}) for m in values["measurements"])
        return cls(**{**values, "measurements": measurements})


def versions(*packages: str) -> dict[str, str]:
    """The installed versions of `packages` and of Python."""
    return {"python": platform.python_version(), **{package: metadata.version(package) for package in packages}}


def command_line() -> str:
    """The command this process was started with, ready to be pasted into a shell."""
    return shlex.join(["python", os.path.basename(sys.argv[0]), *sys.argv[1:]])
