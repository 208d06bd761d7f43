"""The layers of exported graphs: operators with a constant weight, and the names that their weights give them."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

aten = torch.ops.aten

# What tables call each kind of layer.
KINDS: dict[Any, str] = {
    aten.conv1d.default: "conv1d", aten.conv1d.padding: "conv1d",
    aten.conv2d.default: "conv2d", aten.conv2d.padding: "conv2d",
    aten.conv3d.default: "conv3d", aten.conv3d.padding: "conv3d",
    aten.conv_transpose1d.default: "convtranspose1d", aten.conv_transpose2d.input: "convtranspose2d",
    aten.conv_transpose3d.input: "convtranspose3d",
    aten.linear.default: "linear",
}  # fmt: skip
# The operators that can become integers.
WEIGHTED = {aten.conv2d.default, aten.conv2d.padding, aten.linear.default}
NAME = "qexp_layer"  # key of a layer's name among the meta data of its node


def layer_nodes(graph: GraphModule) -> Iterator[Node]:
    """The nodes of all layers, in the order in which they are computed."""
    return (node for node in graph.graph.nodes if node.op == "call_function" and NAME in node.meta)


def is_weighted(node: Node) -> bool:
    """Whether a node is a layer that can become integers."""
    return node.op == "call_function" and node.target in WEIGHTED and NAME in node.meta


def layer_name(node: Node) -> str:
    """The name of a layer, which is the path of the module that has its weight, or the path of the weight itself."""
    return node.meta[NAME]


def name_layers(graph: GraphModule) -> None:
    """Name the layers of an exported graph after their weights.

    Operators whose weight is computed are no layers, unless it was computed once and has the name of a module's weight.
    """
    for node in graph.graph.nodes:
        weight = node.args[1] if node.target in KINDS else None
        if isinstance(weight, Node) and weight.op == "get_attr" and not weight.meta.get("computed"):
            node.meta[NAME] = str(weight.target).removesuffix(".weight")


def weight_named(network: nn.Module, layer: str) -> Tensor:
    """The weight of a layer, by the name that the layer has in the network's graph."""
    weight = getattr(_module_named(network, layer), "weight", None)
    if isinstance(weight, Tensor):
        return weight
    owner, _, leaf = layer.rpartition(".")
    return getattr(network.get_submodule(owner), leaf)


def _module_named(network: nn.Module, path: str) -> nn.Module | None:
    """The module with this path, if there is one. A list of all modules would take as long as a pass over them."""
    try:
        return network.get_submodule(path)
    except AttributeError:
        return None


def parameters_of(network: nn.Module, layer: str) -> int:
    """The number of parameters of a layer, with its bias where both belong to one module."""
    module = _module_named(network, layer)
    return sum(p.numel() for p in module.parameters()) if module else weight_named(network, layer).numel()


def constant_value(graph: GraphModule, constant: Node) -> Tensor:
    """The tensor that a get_attr node stands for."""
    return attrgetter(str(constant.target))(graph).data


def constants(graph: GraphModule) -> dict[Node, Tensor]:
    """The tensors that the graph has, by their nodes. Other attributes are graphs of branches."""
    found = {node: attrgetter(str(node.target))(graph) for node in graph.graph.nodes if node.op == "get_attr"}
    return {node: value.data for node, value in found.items() if isinstance(value, Tensor)}


def compute_constants(graph: GraphModule) -> None:
    """Compute once whatever an exported graph computes from its constants alone, such as standardised weights."""
    known: dict[Node, Any] = {**constants(graph)}
    with torch.no_grad():
        for node in graph.graph.nodes:
            if _changes(node) and any(source in known for source in node.all_input_nodes):
                return  # what is changed in place has to be computed anew at each call
            if _is_constant(node, known):
                args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
                known[node] = node.target(*args, **kwargs)
    computed = {node: value for node, value in known.items() if node.op != "get_attr" and isinstance(value, Tensor)}
    made = [_replace(graph, n, value) for n, value in computed.items() if any(user not in known for user in n.users)]
    graph.graph.eliminate_dead_code()
    taken = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for constant in made:
        _name_like_its_module(graph, constant, taken)
    graph.recompile()


def _changes(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _is_constant(node: Node, known: dict[Node, Any]) -> bool:
    return (
        node.op == "call_function"
        and isinstance(node.target, torch._ops.OpOverload)
        and not _changes(node)
        and torch.Tag.nondeterministic_seeded not in node.target.tags
        and all(source in known for source in node.all_input_nodes)
    )


def _replace(graph: GraphModule, node: Node, value: Tensor) -> Node:
    graph.register_buffer(f"{node.name}_constant", value.detach().clone())
    with graph.graph.inserting_before(node):
        constant = graph.graph.get_attr(f"{node.name}_constant")
    constant.meta.update(val=node.meta.get("val"), computed=True)
    node.replace_all_uses_with(constant)
    return constant


def _name_like_its_module(graph: GraphModule, constant: Node, taken: set[str]) -> None:
    """Give the computed weight of a layer the name of the weight that it was computed from, if nothing else has it.

    Args:
        graph: The graph that has the constant.
        constant: The node of the computed weight.
        taken: The names that the graph reads, to which the new one is added.
    """
    layers = [user for user in constant.users if user.target in KINDS and user.args[1] is constant]
    stack = list((layers[0].meta.get("nn_module_stack") or {}).values()) if layers else []
    path = stack[-1][0] if stack else ""
    owner = graph.get_submodule(path)
    name = f"{path}.weight"
    if path and name not in taken and isinstance(getattr(owner, "weight", None), Tensor):
        value = constant_value(graph, constant)
        delattr(graph, str(constant.target))
        owner.weight = nn.Parameter(value, requires_grad=False)
        constant.target = name
        taken.add(name)
        del constant.meta["computed"]
