"""Half precision: weights and computation in 16-bit floating point, bfloat16 or float16."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.node import map_aggregate

from qexp.artifact import EngineSpec
from qexp.data.base import ImageData
from qexp.method.base import Compressed, Method
from qexp.method.graph import export, folded_graph, layer_table, node_macs, save_graph, with_formats
from qexp.method.layers import weight_named
from qexp.method.layers_csv import rounded_weight
from qexp.types import Unsupported, UserError, nearest

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Half(Method):
    """Folds batch norms, then converts the network to half precision.

    Raises:
        UserError: There is no half precision of this name.
    """

    name = "half"
    supported_bits = (16,)

    def __init__(self, dtype: str, **common: Any):
        super().__init__(**common)
        if dtype not in ("auto", *DTYPES):
            raise UserError(f"There is no half precision {dtype!r}. {nearest(dtype, ('auto', *DTYPES))}")
        self.dtype = dtype

    def label(self, engine_spec: EngineSpec) -> str:
        return engine_spec.half[0].replace("float", "fp").replace("bfp", "bf")

    def resolve(self, engine_spec: EngineSpec) -> EngineSpec:
        if not engine_spec.half:
            raise Unsupported("this engine has no kernels that compute in half precision here")
        dtype = engine_spec.half[0] if self.dtype == "auto" else self.dtype
        if dtype not in engine_spec.half:
            raise Unsupported(f"this engine computes in {' and '.join(engine_spec.half)} here, not in {dtype}")
        return replace(super().resolve(engine_spec), half=(dtype,))

    def apply(self, network: nn.Module, data: ImageData, engine_spec: EngineSpec, folder: Path) -> Compressed:
        (dtype,) = engine_spec.half
        folded = folded_graph(network, data)
        layers = layer_table(folded, network, data)
        macs = sum(node_macs(folded, data, set(folded.graph.nodes)).values())
        save_graph(export(_InHalf(folded, DTYPES[dtype]), data), folder / "model.pt2")
        weights = {layer.name: weight_named(network, layer.name).detach() for layer in layers}
        statistics = {
            name: rounded_weight(weight, weight.to(DTYPES[dtype]).float()) for name, weight in weights.items()
        }
        formats = {layer.name: (dtype, dtype) for layer in layers}
        return Compressed(
            "model.pt2",
            with_formats(layers, formats),
            statistics=statistics,
            product_macs=macs - sum(layer.macs for layer in layers),
        )


class _InHalf(nn.Module):
    """A network that takes x[B,C,H,W] and gives logits[B,K] in float32, and computes in `dtype` in between."""

    def __init__(self, graph: GraphModule, dtype: torch.dtype):
        super().__init__()
        self.network, self.dtype = copy.deepcopy(graph).to(dtype), dtype
        for part in self.network.modules():
            if isinstance(part, GraphModule):
                _cast_to(part, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.to(self.dtype)).float()


def _cast_to(graph: GraphModule, dtype: torch.dtype) -> None:
    """Let an fp32 graph that casts to float32, as `x.float()` and `y.to(x.dtype)` do, cast to `dtype` instead."""
    for node in list(graph.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.graph.erase_node(node)  # it says what was a float32 tensor
        else:
            node.args, node.kwargs = map_aggregate(
                (node.args, node.kwargs), lambda value: dtype if value is torch.float32 else value
            )
    graph.recompile()
