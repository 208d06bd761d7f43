"""Exported graphs as ONNX files, for the engines and methods that work on those."""

from __future__ import annotations

from pathlib import Path

from qexp.coded_file import Piece, is_coded, plain, write_coded
from qexp.types import UserError

BFLOAT16_OPSET = 22  # the first in which convolutions take bfloat16


def write_onnx(graph: Path, input_shape: tuple[int, int, int], file: Path, opset: int | None = None) -> None:
    """Translate a `.pt2` with the input x[B,C,H,W] into ONNX with a free batch size, input `x`, output `logits`; coded, if it is.

    Errors: UserError where torch.onnx cannot.
    """
    import onnxscript  # noqa: F401  (with which torch.onnx translates: keys count its version)
    import torch
    from torch.ao.quantization.fx import _decomposed  # noqa: F401  (registers the quantize/dequantize operators)

    program = torch.export.load(plain(graph))
    try:
        exported = torch.onnx.export(
            program, (torch.zeros(2, *input_shape),), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), input_names=["x"],
            output_names=["logits"], opset_version=opset, verbose=False,
        )  # fmt: skip
    except Exception as error:
        raise UserError(f"torch.onnx cannot export this network: {str(error)[:600]}") from error
    assert exported is not None
    for (
        node
    ) in exported.model.graph.all_nodes():  # source lines and module paths, larger than a small network's weights
        node.metadata_props.clear()
        node.doc_string = None
    exported.save(file)
    if is_coded(graph):
        write_coded(file, pieces(file))


def pieces(file: Path) -> list[Piece]:
    """The float32 weights in an ONNX file."""
    import onnx

    data, position, found = file.read_bytes(), 0, []
    for constant in onnx.load_from_string(data).graph.initializer:  # their order is that of the file
        values = constant.raw_data
        if constant.data_type == onnx.TensorProto.FLOAT and values:
            position = data.index(values, position)
            found.append(Piece(position, len(values), constant.dims[0] if constant.dims else 1))
            position += len(values)
    return found
