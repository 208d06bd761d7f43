"""Writes networks as ncnn reads them: a text that lists layers, and the numbers of these one after the other."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = 7767517  # the first line of the text
PARAM, BIN = "model.ncnn.param", "model.ncnn.bin"
FLOATS, INTEGERS = b"\0\0\0\0", (0x000D4B38).to_bytes(4, "little")  # what comes before weights of either kind
ARRAY = -23300  # a key of an array is this less its number
FEATURES_OFF = 31  # the key of features that a layer must not use
# Computing in float16 or bfloat16, and storing in them: a graph says itself in which numbers it computes.
HALF = 1 << 0 | 1 << 1 | 1 << 2
# Transforms of 3x3 windows. Those of integers overflow unless weights have 6 bits.
WINOGRAD = 1 << 6


@dataclass
class Layer:
    """A line of the text, and the numbers that belong to it."""

    kind: str
    inputs: list[str]
    outputs: list[str]
    params: Mapping[int, Any]
    numbers: list[bytes] = field(default_factory=list)


class NcnnFile:
    """A network in the making. What layers compute is known by names."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []

    def layer(
        self, kind: str, inputs: Sequence[str], params: Mapping[int, Any] | None = None,
        numbers: Iterable[bytes] = (), output: str = "", off: int = HALF,
    ) -> str:  # fmt: skip
        """Add a layer and give the name of its result.

        Args:
            kind: Its name in ncnn.
            inputs: Names of what it reads.
            params: Its parameters by their numbers. An array is a list.
            numbers: Its weights, made by `weights` and `plain`, in ncnn's order.
            output: The name of the result, or none for a new one.
            off: The features that it must not use.
        """
        output = output or f"b{len(self.layers)}"
        self.layers.append(Layer(kind, list(inputs), [output], {**(params or {}), FEATURES_OFF: off}, list(numbers)))
        return output

    def rename(self, name: str, other: str) -> None:
        """Call a result by another name."""
        for layer in self.layers:
            for names in (layer.inputs, layer.outputs):
                names[:] = [other if each == name else each for each in names]

    def save(self, file: Path) -> None:
        """Write the text and the numbers as two files of a ZIP that is not compressed."""
        layers = with_splits(self.layers)
        lines = [str(MAGIC), f"{len(layers)} {sum(len(layer.outputs) for layer in layers)}"]
        lines += [line(layer, f"l{index}") for index, layer in enumerate(layers)]
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(zipfile.ZipInfo(PARAM), "\n".join(lines) + "\n")
            archive.writestr(zipfile.ZipInfo(BIN), b"".join(part for layer in layers for part in layer.numbers))


def with_splits(layers: Sequence[Layer]) -> list[Layer]:
    """The layers with a `Split` behind each result that several read, since a reader uses up what it reads."""
    readers = Counter(name for layer in layers for name in layer.inputs)
    left = {name: [f"{name}_{copy}" for copy in range(count)] for name, count in readers.items() if count > 1}
    copies, made = {name: list(names) for name, names in left.items()}, []
    for layer in layers:
        inputs = [copies[name].pop(0) if name in copies else name for name in layer.inputs]
        made.append(Layer(layer.kind, inputs, layer.outputs, layer.params, layer.numbers))
        made += [Layer("Split", [name], left[name], {}) for name in layer.outputs if name in left]
    return made


def line(layer: Layer, name: str) -> str:
    names = [layer.kind, name, str(len(layer.inputs)), str(len(layer.outputs)), *layer.inputs, *layer.outputs]
    return " ".join([*names, *(_param(number, value) for number, value in layer.params.items())])


def _param(number: int, value: Any) -> str:
    if isinstance(value, list):
        return f"{ARRAY - number}={','.join([str(len(value)), *map(_text, value)])}"
    return f"{number}={_text(value)}"


def _text(value: Any) -> str:
    """A number as text. ncnn reads 15 letters of it."""
    return str(value) if isinstance(value, int) else f"{np.clip(value, -3e38, 3e38):.8e}"


def weights(values: np.ndarray) -> bytes:
    """The weights of a layer, in int8 or float32, with what ncnn knows their kind by."""
    if values.dtype == np.int8:
        return INTEGERS + values.tobytes() + bytes(-values.size % 4)
    return FLOATS + plain(values)


def plain(values: np.ndarray) -> bytes:
    """Biases and scales."""
    return values.astype("<f4").tobytes()
