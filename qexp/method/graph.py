"""Exported graphs: how they are made from networks, what their layers are, and how they are written to files."""

from __future__ import annotations

import copy
import logging
import zipfile
from collections.abc import Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.fx import GraphModule, Interpreter, Node
from torch.utils.flop_counter import FlopCounterMode

from qexp.artifact import Layer
from qexp.coded_file import graph_pieces, write_coded
from qexp.data.base import ImageData
from qexp.method.batch_norms import fold_batch_norms
from qexp.method.layers import KINDS, compute_constants, layer_name, layer_nodes, name_layers, parameters_of
from qexp.method.verification import verify
from qexp.tracing import without_stack_traces
from qexp.types import UserError

# torchao registers an enum in a way that torch 2.15 calls deprecated. Without this, torch would say so at each import.
logging.getLogger("torch.utils._pytree").addFilter(lambda record: "KernelPreference" not in record.getMessage())

# What torch.export says in its own words of what cannot be traced, and what that means for a network.
UNTRACEABLE = {
    "specialized it to be a constant": "forward fixes the number of images. Take x.shape[0], which may be any number, "
    "in place of len(x) or of a number.",
    "data-dependent": "forward decides by the values of a tensor, as `if x.max() > 0` and `.item()` do. Compute with "
    "tensors alone, for example with torch.where.",
    ".numpy()": "forward leaves torch by .numpy(). Compute with tensors alone.",
}


def example_input(data: ImageData, batch: int = 2) -> Tensor:
    """Make images x[B,C,H,W] of zeros, in the shape of the data.

    There are two by default, since torch.export takes a batch size of one for a constant.
    """
    return torch.zeros(batch, *data.spec.input_shape)


def count_macs(network: nn.Module, data: ImageData) -> int:
    """Count the multiply-accumulate operations of a network for one image.

    torch's FlopCounterMode sees every operation, whichever module calls it, and counts two for a multiply-accumulate.
    It does not see into the fast path of torch's transformer layers, which is therefore off. Where a module is given a
    view of a parameter, it looks for the gradient, so that parameters may have none here.
    """
    alike = copy.deepcopy(network).requires_grad_(False)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            alike(example_input(data, 1))
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    return counter.get_total_flops() // 2


class _Macs(Interpreter):
    """Runs a graph and counts the multiply-accumulates of some nodes."""

    def __init__(self, graph: GraphModule, nodes: Set[Node]):
        super().__init__(graph)
        self.macs = dict.fromkeys(nodes, 0)

    def run_node(self, n: Node) -> Any:
        if n not in self.macs:
            return super().run_node(n)
        with FlopCounterMode(display=False) as counter:
            result = super().run_node(n)
        self.macs[n] = counter.get_total_flops() // 2
        return result


def node_macs(graph: GraphModule, data: ImageData, nodes: Set[Node]) -> dict[Node, int]:
    """Count the multiply-accumulates of some nodes of a graph for one image."""
    run = _Macs(graph, nodes)
    # Without real numbers this takes no time even for large networks.
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        run.run(example_input(data, 1))
    return run.macs


def layer_table(graph: GraphModule, network: nn.Module, data: ImageData) -> tuple[Layer, ...]:
    """List every convolution and linear layer of an fp32 graph, with its parameters and multiply-accumulates.

    A layer is known by its weight, since that may belong to any module, or to the network itself. A layer that is
    computed several times stands where it is computed first, with the sum of its multiply-accumulates.

    Args:
        graph: A graph with named layers, as `graph_of` makes it.
        network: The network that it was made from.
        data: The images that the network is for.
    """
    found: dict[str, Layer] = {}
    for node, macs in node_macs(graph, data, dict.fromkeys(layer_nodes(graph)).keys()).items():
        name = layer_name(node)
        known = found.get(name) or Layer(name, KINDS[node.target], parameters_of(network, name), 0)
        found[name] = replace(known, macs=known.macs + macs)
    return tuple(found.values())


def trace(network: nn.Module, data: ImageData) -> ExportedProgram:
    """Export the network as an ATen graph with a free batch size.

    Raises:
        UserError: torch.export cannot trace the network.
    """
    try:
        x, shapes = example_input(data), torch.export.ShapesCollection()
        shapes[x] = {0: torch.export.Dim("batch")}
        with without_stack_traces():
            return torch.export.export(network, (x,), dynamic_shapes=shapes)
    except Exception as error:
        why = next((cause for sign, cause in UNTRACEABLE.items() if sign in str(error)), str(error)[:600])
        raise UserError(f"torch.export cannot trace {type(network).__name__}: {why}") from error


def export(network: nn.Module, data: ImageData) -> ExportedProgram:
    """Export the network as an ATen graph with a free batch size that computes the same.

    Raises:
        UserError: torch.export cannot trace the network, or computes something else on calibration images.
    """
    program = trace(network, data)
    verify(program.module(check_guards=False), network, data.calibration(), "The exported graph")
    return program


def graph_of(program: ExportedProgram) -> GraphModule:
    """The graph of an exported program, as a module whose constants are computed and whose layers are named.

    It shares the weights of the program.
    """
    graph = program.module(check_guards=False)
    assert isinstance(graph, GraphModule)
    compute_constants(graph)
    name_layers(graph)
    return graph


def folded_graph(network: nn.Module, data: ImageData, fuse: bool = True) -> GraphModule:
    """Export a copy of the network as a graph without batch norms that computes the same.

    Args:
        network: The network in eval mode.
        data: The images that it is for.
        fuse: Whether batch norms are folded into the layers before them. If not, they become multiply-adds.

    Raises:
        UserError: torch.export cannot trace the network, or the graph computes something else on calibration images.
    """
    # A copy, since an exported graph shares its weights with the network, and later steps change them.
    folded = fold_batch_norms(graph_of(export(copy.deepcopy(network), data)), fuse)
    verify(folded, network, data.calibration(), "The graph with folded batch norms")
    return folded


def save_graph(program: ExportedProgram, file: Path, coded: bool = False) -> None:
    """Write a `.pt2` file without debug information (source lines and module paths), which would dwarf a small network.

    Args:
        program: The program to write. It loses its debug information and its example inputs.
        file: Where to write it.
        coded: Whether to write the form of qexp.coded_file, which is small where weights are zero or shared.
    """
    for module in program.graph_module.modules():
        if isinstance(module, GraphModule):
            for node in module.graph.nodes:
                for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn"):
                    node.meta.pop(key, None)
    program.example_inputs = None
    whole = file.with_name(f".{file.name}")
    torch.export.save(program, whole)
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(file, "w") as compressed:
        for entry in archive.infolist():
            # The text of the graph is compressed, since it would be larger than the weights of a small network.
            text = entry.filename.endswith(".json") and not coded
            compressed.writestr(entry, archive.read(entry), zipfile.ZIP_DEFLATED if text else zipfile.ZIP_STORED)
    whole.unlink()
    if coded:
        write_coded(file, graph_pieces(file))


def save_fp32(network: nn.Module, data: ImageData, file: Path, coded: bool = False) -> tuple[Layer, ...]:
    """Write the graph of a network as it is.

    Arguments are those of `export` and `save_graph`, and so are the errors.

    Returns:
        The layers of the network.
    """
    program = export(network, data)
    layers = layer_table(graph_of(program), network, data)
    save_graph(program, file, coded)
    return layers


def with_formats(layers: tuple[Layer, ...], formats: dict[str, tuple[str, str]]) -> tuple[Layer, ...]:
    """Replace the (weight, activation) formats of those layers whose names are in `formats`."""
    return tuple(
        replace(la, weight=formats[la.name][0], activation=formats[la.name][1]) if la.name in formats else la
        for la in layers
    )
