"""Placements, which decide where an exported graph gets its quantize/dequantize pairs.

They are quantizers for torchao's PT2E flow: `fused` is for integer runtimes, and `x86_inductor` for Inductor's kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    Quantizer,
    SharedQuantizationSpec,
)
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from qexp.method.layers import aten, is_weighted, layer_name

# Elementwise operators whose result has a range of its own.
COMBINING = {aten.add.Tensor, aten.add_.Tensor, aten.mul.Tensor, aten.mul_.Tensor, aten.addcmul.default}
# Activations that an integer kernel applies to its own result before rounding.
FUSED_ACTIVATIONS = {
    aten.relu.default, aten.relu_.default, aten.hardtanh.default, aten.hardtanh_.default, aten.relu6.default,
    aten.clamp.default,
}  # fmt: skip
# Operators that only move or average values, so that their result has the scale of their input.
SCALE_KEEPING = {
    aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.mean.dim,
    aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.permute.default, aten.transpose.int,
    aten.dropout.default, aten.cat.default,
}  # fmt: skip


@dataclass(frozen=True)
class LayerSpec:
    """The specs of a layer's weights and of its input (`activation`). None stands for floating point."""

    weight: QuantizationSpec | None
    activation: QuantizationSpec | None


def weighted_layers(graph: GraphModule) -> list[str]:
    """The names of all layers that can become integers, in the order in which they are computed."""
    return list(dict.fromkeys(layer_name(node) for node in graph.graph.nodes if is_weighted(node)))


def x86_inductor_placement(layer: LayerSpec) -> Quantizer:
    """torchao's own placement for Inductor's kernels, which add in floating point. All layers have the same specs."""
    # Imported only here, since the import takes seconds.
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        QuantizationConfig,
        X86InductorQuantizer,
    )

    return X86InductorQuantizer().set_global(
        QuantizationConfig(layer.activation, layer.activation, layer.weight, bias=None)
    )


def _is_float(node: Node) -> bool:
    """Whether the result of a node is a tensor of floating-point numbers, and no size and no index."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _float_inputs(node: Node) -> list[Node]:
    return [source for source in node.all_input_nodes if _is_float(source)]


class FusedPlacement(Quantizer):
    """Places quantizers so that integer runtimes find no float operator between two integer ones.

    Such runtimes are ONNX Runtime, OpenVINO and XNNPACK. The inputs and weights of convolutions and linear layers are
    quantised, and so are their outputs, after the activation that follows. Elementwise operators such as additions have
    their inputs and their output quantised. Pooling and reshaping keep the scale of their input.

    A tensor that several operators read gets the finest spec that any of them asks for. An operator that asks for a
    coarser spec rounds the tensor again.

    Args:
        layers: Specs of each layer, by module path.
        between: Spec for elementwise operators and for the network's output, or None for floating point.
        unfused: Whether the result of every convolution is quantised before its activation as well.
        before_activation: Whether the result of every convolution is quantised before its activation instead of after.
    """

    def __init__(
        self,
        layers: Mapping[str, LayerSpec],
        between: QuantizationSpec | None,
        unfused: bool = False,
        before_activation: bool = False,
    ):
        self.layers, self.between, self.unfused, self.before_activation = layers, between, unfused, before_activation

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            if node.op == "call_function" and _is_float(node):
                self._annotate(node)
        return model

    def validate(self, model: GraphModule) -> None:
        """Accept every graph. Operators without an annotation stay in floating point, which coverage reports."""

    def _annotate(self, node: Node) -> None:
        if is_weighted(node):
            data, weight, *_ = node.args
            assert isinstance(data, Node) and isinstance(weight, Node)
            spec = self.layers[layer_name(node)]
            self._set(node, {data: spec.activation, weight: spec.weight}, self._output(node))
        elif node.target in COMBINING:
            inputs = [source for source in _float_inputs(node) if source.op != "get_attr"]
            self._set(node, dict.fromkeys(inputs, self.between), self._output(node))
        elif node.target in FUSED_ACTIVATIONS and not self.before_activation:
            self._set(node, {}, self._wanted(node))
        elif node.target in SCALE_KEEPING or node.target in FUSED_ACTIVATIONS:
            wanted, inputs = self._wanted(node), _float_inputs(node)
            if wanted and inputs:
                first, *others = inputs  # a concatenation has several
                shared = SharedQuantizationSpec((first, node))
                self._set(node, {first: wanted, **dict.fromkeys(others, shared)}, shared)

    def _output(self, node: Node) -> QuantizationSpec | None:
        """The spec of the node's result, or None if the next operator belongs to it and has its result quantised."""
        followers = list(node.users)
        followed = len(followers) == 1 and followers[0].target in FUSED_ACTIVATIONS
        return None if followed and not (self.unfused or self.before_activation) else self._wanted(node)

    def _wanted(self, node: Node) -> QuantizationSpec | None:
        """The spec with the most levels among those that the readers of `node` ask for."""
        wanted = [spec for reader in node.users if (spec := self._reads(reader))]
        return max(wanted, key=lambda spec: (spec.quant_max or 0) - (spec.quant_min or 0), default=None)

    def _reads(self, reader: Node) -> QuantizationSpec | None:
        """The spec that `reader` asks for."""
        if is_weighted(reader):
            return self.layers[layer_name(reader)].activation
        if reader.op == "output" or reader.target in COMBINING:
            return self.between
        if reader.target in SCALE_KEEPING or reader.target in FUSED_ACTIVATIONS:
            return self._wanted(reader)
        return None

    def _set(
        self, node: Node, inputs: dict[Node, QuantizationSpecBase | None], output: QuantizationSpecBase | None
    ) -> None:
        given = {source: spec for source, spec in inputs.items() if spec}
        node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
            input_qspec_map=given, output_qspec=output, _annotated=True
        )
