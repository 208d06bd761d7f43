"""Writes exported graphs as ONNX files, for the engines and methods that work on those."""

from __future__ import annotations

from pathlib import Path

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

    from qexp.onnx_rewrites import count_images, keep_in_floating_point, move_integers

    program = torch.export.load(graph)
    try:
        exported = torch.onnx.export(
            program, (torch.zeros(2, *input_shape),), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["x"], output_names=["logits"], opset_version=opset, verbose=False,
        )  # fmt: skip
    except Exception as error:
        raise UserError(f"torch.onnx cannot export this network: {str(error)[:600]}") from error
    assert exported is not None
    count_images(exported.model.graph)
    move_integers(exported.model.graph)
    keep_in_floating_point(exported.model.graph)
    for node in exported.model.graph.all_nodes():
        # Source lines and module paths are larger than a small network's weights.
        node.metadata_props.clear()
        node.doc_string = None
    exported.save(file)
