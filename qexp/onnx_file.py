"""Writes exported graphs as ONNX files, for the engines and methods that work on those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qexp.types import UserError

BFLOAT16_OPSET = 22  # the first one in which convolutions take bfloat16


def write_onnx(graph: Path, input_shape: tuple[int, int, int], file: Path, opset: int | None = None) -> None:
    """Translate a plain `.pt2` into ONNX with a free batch size.

    Args:
        graph: The `.pt2`, whose input is x[B,C,H,W].
        input_shape: (C, H, W) of one image.
        file: The ONNX file to write, with the input `x` and the output `logits`.
        opset: The version of ONNX's operators, or None for the one that torch.onnx prefers.

    Raises:
        UserError: torch.onnx cannot export the network.
    """
    import onnxscript  # noqa: F401  (torch.onnx translates with it, so keys must count its version)
    import torch
    from torch.ao.quantization.fx import _decomposed  # noqa: F401  (registers the quantize/dequantize operators)

    program = torch.export.load(graph)
    try:
        exported = torch.onnx.export(
            program, (torch.zeros(2, *input_shape),), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["x"], output_names=["logits"], opset_version=opset, verbose=False,
        )  # fmt: skip
    except Exception as error:
        raise UserError(f"torch.onnx cannot export this network: {str(error)[:600]}") from error
    assert exported is not None
    _drop_requantisation(exported.model.graph)
    for node in exported.model.graph.all_nodes():
        # Source lines and module paths are larger than a small network's weights.
        node.metadata_props.clear()
        node.doc_string = None
    exported.save(file)


def _drop_requantisation(graph: Any) -> None:
    """Let integers that are dequantised and quantised again with the same scale be read as they are.

    They meet where torch.onnx leaves out what did nothing between them, such as a slice of everything. OpenVINO 2026.4
    crashes on some of them behind concatenations.
    """
    from onnx_ir.convenience import replace_all_uses_with

    for node in list(graph):
        source = node.inputs[0].producer() if node.op_type == "QuantizeLinear" else None
        if source and source.op_type == "DequantizeLinear" and node.inputs[1:] == source.inputs[1:]:
            replace_all_uses_with(node.outputs[0], source.inputs[0])
            graph.remove(node, safe=True)
            if not source.outputs[0].uses():
                graph.remove(source, safe=True)
