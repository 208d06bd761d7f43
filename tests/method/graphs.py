"""What tests read off a graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node


class Values(Interpreter):
    """What each node computes."""

    def __init__(self, graph: GraphModule):
        super().__init__(graph, garbage_collect_values=False)
        self.of: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        self.of[n.name] = result = super().run_node(n)
        return result


def values(graph: GraphModule, x: Tensor) -> dict[str, Tensor]:
    """What each node computes, by its name."""
    reader = Values(graph)
    with torch.no_grad():
        reader.run(x)
    return reader.of
