"""Exported graphs: how they are made from networks, what their layers are, and how they are written to files."""

from __future__ import annotations

import logging
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.utils.flop_counter import FlopCounterMode

from qexp.coded_file import graph_pieces, write_coded
from qexp.data.base import ImageData
from qexp.types import Layer, UserError

# torchao registers an enum in a way that torch 2.15 calls deprecated. Without this, torch would say so at each import.
logging.getLogger("torch.utils._pytree").addFilter(lambda record: "KernelPreference" not in record.getMessage())

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def example_input(data: ImageData, batch: int = 2) -> Tensor:
    """Make images x[B,C,H,W] of zeros, in the shape of the data.

    There are two by default, since torch.export takes a batch size of one for a constant.
    """
    return torch.zeros(batch, *data.spec.input_shape)


def count_macs(network: nn.Module, data: ImageData) -> dict[str, int]:
    """Count the multiply-accumulate operations for one image, by module path. The path "" is the whole network.

    torch's FlopCounterMode sees every operation, whichever module calls it, and counts two for a multiply-accumulate.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(example_input(data, 1))
    root = type(network).__name__
    macs = {
        path.removeprefix(f"{root}."): sum(flops.values()) // 2 for path, flops in counter.get_flop_counts().items()
    }
    return {**macs, "": counter.get_total_flops() // 2}


def layer_table(network: nn.Module, data: ImageData) -> tuple[Layer, ...]:
    """List every convolution and linear layer of the fp32 network, with its parameters and multiply-accumulates."""
    macs = count_macs(network, data)
    return tuple(
        Layer(name, type(module).__name__.lower(), sum(p.numel() for p in module.parameters()), macs.get(name, 0))
        for name, module in network.named_modules()
        if isinstance(module, WEIGHTED)
    )


def export(network: nn.Module, data: ImageData) -> ExportedProgram:
    """Export the network as an ATen graph with a free batch size.

    Raises:
        UserError: torch.export cannot trace the network.
    """
    try:
        shapes = ({0: torch.export.Dim("batch")},)
        return torch.export.export(network, (example_input(data),), dynamic_shapes=shapes)
    except Exception as error:
        raise UserError(f"torch.export cannot trace {type(network).__name__}: {str(error)[:600]}") from error


def fold_batch_norms(graph: Any) -> GraphModule:
    """Fold the batch norms of an exported graph into the convolutions before them, in fp32."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import Quantizer

    class Nothing(Quantizer):
        """Quantises nothing, so that folding is all that is left of the flow."""

        def annotate(self, model: GraphModule) -> GraphModule:
            return model

        def validate(self, model: GraphModule) -> None:
            """There is nothing to check, since nothing was annotated."""

    return convert_pt2e(prepare_pt2e(graph, Nothing()))


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


def with_formats(layers: tuple[Layer, ...], formats: dict[str, tuple[str, str]]) -> tuple[Layer, ...]:
    """Replace the (weight, activation) formats of those layers whose names are in `formats`."""
    return tuple(
        replace(la, weight=formats[la.name][0], activation=formats[la.name][1]) if la.name in formats else la
        for la in layers
    )
