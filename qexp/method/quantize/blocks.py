"""Blocks: pieces of a prepared graph with one input and one output tensor, which are reconstructed one at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from qexp.method.layers import is_weighted
from qexp.method.quantize.placement import COMBINING, FUSED_ACTIVATIONS


@dataclass(frozen=True)
class Block:
    """A piece of a graph with one input and one output.

    Attributes:
        source: The node whose value goes in.
        result: The node whose value comes out.
    """

    source: Node
    result: Node


def residual_blocks(prepared: GraphModule) -> list[Block]:
    """Cut the graph wherever all that follows depends on a single tensor, so that residual blocks stay whole.

    There is at least one layer between two cuts. Activations and pooling stay with the layer before them.
    """
    nodes = _activations(prepared)
    place = {node: position for position, node in enumerate(nodes)}
    last_read = [
        max(len(nodes) if user.op == "output" else place.get(user, 0) for user in node.users) for node in nodes
    ]
    source, found, has_layer = nodes[0], [], False
    for position, node in enumerate(nodes[1:], start=1):
        has_layer |= is_weighted(node)
        alive = [earlier for earlier in nodes[: position + 1] if last_read[place[earlier]] > position]
        if alive == [node] and has_layer and _ends_here(node):
            found.append(Block(source, node))
            source, has_layer = node, False
    return found


def single_layers(prepared: GraphModule) -> list[Block]:
    """Make a block of each layer, together with the quantizers of its input and the activation that follows it."""
    found = []
    for node in _activations(prepared):
        if is_weighted(node):
            source, result = node.all_input_nodes[0], node
            while source.op == "call_module":
                (source,) = source.all_input_nodes
            if len(node.users) == 1 and (user := next(iter(node.users))).target in FUSED_ACTIVATIONS:
                result = user
            found.append(Block(source, result))
    return found


def _activations(prepared: GraphModule) -> list[Node]:
    """All nodes that depend on the images and are read by other nodes, in order."""
    dependent: dict[Node, None] = {}
    for node in prepared.graph.nodes:
        if node.users and (node.op == "placeholder" or any(source in dependent for source in node.all_input_nodes)):
            dependent[node] = None
    return list(dependent)


def _ends_here(node: Node) -> bool:
    """Whether no reader of the node is an activation or a pooling, which would belong to the same block."""
    return all(
        user.op in ("call_module", "output") or is_weighted(user) or user.target in COMBINING for user in node.users
    )


def extract(prepared: GraphModule, block: Block) -> GraphModule:
    """Copy a block into a graph of its own, which shares its modules and weights with `prepared`."""
    graph = Graph()
    copies = {block.source: graph.placeholder("x")}

    def copied(node: Node) -> Node:
        if node not in copies:
            for source in node.all_input_nodes:
                copied(source)
            copies[node] = graph.node_copy(node, lambda source: copies[source])
        return copies[node]

    graph.output(copied(block.result))
    return GraphModule(prepared, graph)


def value_of(prepared: GraphModule, node: Node, images: Tensor, batch: int) -> Tensor:
    """Compute the value of `node` for all images x[N,C,H,W], `batch` of them at a time."""
    start = next(n for n in prepared.graph.nodes if n.op == "placeholder")
    if node is start:
        return images
    part = extract(prepared, Block(start, node))
    with torch.no_grad():
        return torch.cat([part(chunk) for chunk in images.split(batch)])
