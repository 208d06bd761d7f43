"""Writes exported graphs as ONNX files, for the engines and methods that work on those."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexp.tracing import without_stack_traces
from qexp.types import UserError

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

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

    from qexp.onnx_rewrites import count_images, hold_poolings, keep_in_floating_point, move_integers

    program = torch.export.load(graph)
    spell_out_attention(program.graph_module)
    for view in program.graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
        view.target = torch.ops.aten.reshape.default  # what was spelled out has another memory order
    try:
        with without_stack_traces():
            exported = torch.onnx.export(
                program, (torch.zeros(2, *input_shape),), dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},), input_names=["x"], output_names=["logits"],
                opset_version=opset, verbose=False,
            )  # fmt: skip
    except Exception as error:
        # The reasons stand below advice to developers of PyTorch.
        reasons = (
            str(error)
            .rpartition("## Exception summary")[2]
            .replace("\N{UPWARDS BLACK ARROW}\N{VARIATION SELECTOR-16}", "")
        )
        raise UserError(f"torch.onnx cannot export this network: {' '.join(reasons.split())[:600]}") from error
    assert exported is not None
    count_images(exported.model.graph)
    move_integers(exported.model.graph)
    keep_in_floating_point(exported.model.graph)
    hold_poolings(exported.model.graph)
    for node in exported.model.graph.all_nodes():
        # Source lines and module paths are larger than a small network's weights.
        node.metadata_props.clear()
        node.doc_string = None
    exported.save(file)


def spell_out_attention(graph: GraphModule) -> None:
    """Replace attentions that torch.onnx cannot translate by products and a softmax, in place.

    Those are attentions of queries that have another number of dimensions than four, and attentions with a mask, whose
    results get another memory order on the way, which the views behind them refuse.
    """
    import torch

    attention = torch.ops.aten.scaled_dot_product_attention.default
    for node in graph.graph.find_nodes(op="call_function", target=attention):
        four, mask = node.args[0].meta["val"].dim() == 4, node.kwargs.get("attn_mask", [*node.args, None, None][3])
        causal = node.kwargs.get("is_causal", len(node.args) > 5 and node.args[5])
        if (not four or mask is not None) and not causal and not node.kwargs.get("enable_gqa"):
            with graph.graph.inserting_before(node):
                node.replace_all_uses_with(_products(node, mask))
            graph.graph.erase_node(node)
    graph.recompile()


def _products(node: Node, mask: Any) -> Node:
    """The nodes that compute softmax(scale * queries keys^T + mask) values, in front of an attention."""
    import torch

    aten, add = torch.ops.aten, node.graph.call_function
    queries, keys, values = node.args[:3]
    scale = node.kwargs.get("scale") or 1 / math.sqrt(queries.meta["val"].shape[-1])  # type: ignore[union-attr]
    scores = add(aten.matmul.default, (queries, add(aten.transpose.int, (keys, -2, -1))))
    scores = add(aten.mul.Scalar, (scores, scale))
    if mask is not None and mask.meta["val"].dtype == torch.bool:
        scores = add(aten.masked_fill.Scalar, (scores, add(aten.logical_not.default, (mask,)), -math.inf))
    elif mask is not None:
        scores = add(aten.add.Tensor, (scores, mask))
    return add(aten.matmul.default, (add(aten.softmax.int, (scores, -1)), values))
