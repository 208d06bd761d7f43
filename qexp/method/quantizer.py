"""Where quantize/dequantize pairs stand in an exported graph: quantizers for torchao's PT2E flow.

The placement `fused` quantises the inputs and weights of convolutions and linear layers, their outputs after a following
activation, and both inputs and the output of additions; pooling and reshaping keep the scale of their input. Integer
runtimes (ONNX Runtime, OpenVINO, XNNPACK) then find no float operator between two integer ones. `x86_inductor` is torchao's
own for Inductor's kernels, which add in floating point.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    Quantizer,
    SharedQuantizationSpec,
)
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

aten = torch.ops.aten

WEIGHTED = {aten.conv2d.default, aten.conv2d.padding, aten.linear.default}
# Elementwise operators whose result has a range of its own.
COMBINING = {aten.add.Tensor, aten.add_.Tensor, aten.mul.Tensor, aten.mul_.Tensor, aten.addcmul.default}
# Activations that an integer kernel applies to its own result before rounding.
FUSED_ACTIVATIONS = {
    aten.relu.default, aten.relu_.default, aten.hardtanh.default, aten.hardtanh_.default, aten.relu6.default, aten.clamp.default,
}  # fmt: skip
# Operators that only move or average values: the result has the scale of the input.
SCALE_KEEPING = {
    aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.mean.dim, aten.flatten.using_ints,
    aten.view.default, aten.reshape.default, aten.permute.default, aten.transpose.int, aten.dropout.default, aten.cat.default,
}  # fmt: skip


def placement(name: str, activation: QuantizationSpec, weight: QuantizationSpec, fuse_activation: bool) -> Quantizer:
    """The quantizer of the placement `name` with one spec for activations and one for weights."""
    if name == "fused":
        return FusedPlacement(activation, weight, fuse_activation)
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import QuantizationConfig, X86InductorQuantizer  # takes seconds

    return X86InductorQuantizer().set_global(QuantizationConfig(activation, activation, weight, bias=None))


class FusedPlacement(Quantizer):
    """Annotates a whole graph with one spec for activations and one for weights.

    fuse_activation=False quantises every convolution's result before its activation too.
    """

    def __init__(self, activation: QuantizationSpec, weight: QuantizationSpec, fuse_activation: bool = True):
        self.activation, self.weight, self.fuse_activation = activation, weight, fuse_activation

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            if node.op == "call_function":
                self._annotate(node)
        return model

    def validate(self, model: GraphModule) -> None:
        """Every graph is valid: operators without annotation stay in floating point, and coverage says so."""

    def _annotate(self, node: Node) -> None:
        if node.target in WEIGHTED:
            data, weight = node.all_input_nodes[:2]
            self._set(node, {data: self.activation, weight: self.weight}, self._output(node))
        elif node.target in COMBINING:
            inputs = {source: self.activation for source in node.all_input_nodes if source.op != "get_attr"}
            self._set(node, inputs, self._output(node))
        elif node.target in FUSED_ACTIVATIONS:
            self._set(node, {}, self.activation)
        elif node.target in SCALE_KEEPING:
            first, *others = node.all_input_nodes  # concatenation has several
            shared = SharedQuantizationSpec((first, node))
            self._set(node, {first: self.activation, **dict.fromkeys(others, shared)}, shared)

    def _output(self, node: Node) -> QuantizationSpec | None:
        """None where the next operator is a fused activation, which is quantised instead."""
        followers = list(node.users)
        followed = len(followers) == 1 and followers[0].target in FUSED_ACTIVATIONS
        return None if followed and self.fuse_activation else self.activation

    def _set(self, node: Node, inputs: dict[Node, QuantizationSpecBase], output: QuantizationSpecBase | None) -> None:
        node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(input_qspec_map=inputs, output_qspec=output, _annotated=True)
