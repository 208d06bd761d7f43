"""Translates exported graphs into ncnn's layers.

ncnn knows no axis for images: a tensor [1,C,H,W] of the graph is one [C,H,W] there. Layers with integer weights round
what they read themselves, and give integers if nothing but such layers reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.fx import GraphModule, Node

from qexp.engine.exported import (
    Grid,
    arguments,
    clipping,
    constant,
    grid_of,
    is_dequantize,
    is_quantize,
    operator_name,
    rounded_to,
    sole_reader,
    unsupported,
)
from qexp.engine.ncnn_file import HALF, WINOGRAD, NcnnFile, plain, weights

LAYERS = {"conv2d", "linear"}
RELU, CLIP = 1, 3  # ncnn's numbers for what a layer does to its result
# ncnn's parameters that say how a layer computes: whether there are scales, and what is done to the result.
SCALES, ACTIVATION, LIMITS = 8, 9, 10
PER_CHANNEL, GIVES_INTEGERS = 2, 100  # the second is added to the first


@dataclass(frozen=True, eq=False)
class Parameters:
    """The weight[O,...] of a layer as it is stored, and what its integers stand for, or None in floating point."""

    weight: np.ndarray
    bias: np.ndarray | None
    grid: Grid | None


class Translation:
    """Translates one graph whose nodes have example values of one image."""

    def __init__(self, graph: GraphModule):
        self.graph, self.file = graph, NcnnFile()
        self.names: dict[Node, str] = {}

    def save(self, file: Path, operators: dict[str, Callable[[Translation, Node], None]]) -> None:
        """Translate the whole graph and write the file, with the input `x` and the output `logits`.

        Raises:
            Unsupported: There is no layer for one of the graph's operators.
        """
        nodes = list(self.graph.graph.nodes)
        for node in nodes:
            if node in self.names or node.op in ("get_attr", "output"):
                continue
            if node.op == "placeholder":
                self.names[node] = self.file.layer("Input", [], output="x", off=0)
            elif is_quantize(node) or is_dequantize(node):
                self._pass_on(node)
            elif (translate := operators.get(operator_name(node))) is None:
                raise unsupported("ncnn", node)
            else:
                translate(self, node)
        (answer,) = (node.args[0] for node in nodes if node.op == "output")
        (logits,) = answer if isinstance(answer, list | tuple) else (answer,)
        self.file.rename(self.names[logits], "logits")
        self.file.save(file)

    def _pass_on(self, node: Node) -> None:
        """Leave the rounding of a tensor to the layers that read it."""
        if constant(self.graph, node.args[0]) is not None:
            return
        if is_dequantize(node) and not all(self.is_integer_layer(user) for user in node.users):
            raise unsupported("ncnn", node, "that anything but a layer with integer weights reads")
        self.names[node] = self.names[node.args[0]]  # type: ignore[index]

    def is_integer_layer(self, node: Node) -> bool:
        """Whether a node is a convolution or a linear layer that computes in integers."""
        return operator_name(node) in LAYERS and all(
            isinstance(given, Node) and is_dequantize(given) for given in node.args[:2]
        )

    def is_computed(self, node: Node) -> bool:
        return constant(self.graph, node) is None

    def parameters(self, node: Node) -> Parameters:
        """The weight and the bias of a layer."""
        given = arguments(node)
        rounded = isinstance(given["weight"], Node) and is_dequantize(given["weight"])
        weight = constant(self.graph, given["weight"].args[0] if rounded else given["weight"])
        bias = constant(self.graph, given["bias"])
        if weight is None:
            raise unsupported("ncnn", node, "with weights that are computed")
        integers = self.is_integer_layer(node)
        values = weight.numpy() if integers else weight.float().numpy()
        grid = grid_of(self.graph, given["weight"]) if rounded else None
        if grid is not None and not integers:
            scale, zero = (each.reshape(-1, *[1] * (values.ndim - 1)) for each in (grid.scale, grid.zero))
            values, grid = ((values - zero) * scale).astype(np.float32), None
        return Parameters(values, None if bias is None else bias.float().numpy(), grid)

    def clipped(self, node: Node) -> tuple[Node, dict[int, Any]]:
        """The node that stands for a layer's result, which may be the clipping behind it, and what that is to ncnn."""
        reader = sole_reader(node)
        limits = clipping(reader)
        if reader is None or limits is None:
            return node, {}
        if limits == (0.0, np.inf):
            return reader, {ACTIVATION: RELU}
        return reader, {ACTIVATION: CLIP, LIMITS: [float(limit) for limit in limits]}

    def next_grid(self, node: Node) -> Grid | None:
        """What a result is rounded to by all that read it, if these are layers with integer weights, or None."""
        grid = rounded_to(self.graph, node)
        readers = [reader for rounded in node.users for reader in rounded.users]
        layers = all(is_dequantize(each) and all(map(self.is_integer_layer, each.users)) for each in readers)
        return grid if readers and layers else None

    def weighted(self, node: Node, kind: str, params: dict[int, Any], found: Parameters) -> None:
        """Add a layer with weights.

        Args:
            node: Its node.
            kind: What ncnn calls it.
            params: What describes it.
            found: Its weight and bias.
        """
        source = node.args[0]
        assert isinstance(source, Node)
        last, activation = self.clipped(node)
        numbers = [weights(found.weight), *([] if found.bias is None else [plain(found.bias)])]
        off = HALF
        if found.grid is not None:
            scale = np.broadcast_to(found.grid.scale, len(found.weight))
            after = self.next_grid(last) if kind != "InnerProduct" else None
            scales = [scale, grid_of(self.graph, source).scale, *([after.scale] if after else [])]
            numbers += [plain(1 / each.astype(np.float64)) for each in scales]
            each = 1 if kind == "ConvolutionDepthWise" else PER_CHANNEL
            params = {**params, SCALES: each + (GIVES_INTEGERS if after else 0)}
            off |= WINOGRAD
        name = self.file.layer(kind, [self.names[source]], {**params, **activation}, numbers, off=off)
        self.names[node] = self.names[last] = name

    def emit(self, node: Node, kind: str, inputs: list[str], params: dict[int, Any] | None = None) -> None:
        """Add the layer that computes the value of a node."""
        self.names[node] = self.file.layer(kind, inputs, params)

    def read(self, node: Any, rank: int = 0) -> str:
        """The name of a node's value.

        Args:
            node: The node, which may stand for a constant.
            rank: How many axes a constant needs at least, apart from that of images.
        """
        if node not in self.names:
            value = constant(self.graph, node)
            assert value is not None
            values = value.float().numpy()
            values = values.reshape([1] * (rank + 1 - values.ndim) + [*values.shape])[0]
            params = dict(zip((0, 1, 2), values.shape[::-1], strict=False))
            self.names[node] = self.file.layer("MemoryData", [], params, [plain(values)])
        return self.names[node]
