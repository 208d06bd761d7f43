"""Placements, which decide where an exported graph gets its quantize/dequantize pairs.

They are quantizers for torchao's PT2E flow: `fused` and `xnnpack` are for integer runtimes, `ncnn` for runtimes whose
layers alone compute in integers, and `x86_inductor` for Inductor's kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import getitem
from typing import Any

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
from qexp.method.quantize.decompositions import Kernels, is_factor

# Elementwise operators on two tensors, whose result has a range of its own.
COMBINING = {aten.add.Tensor, aten.add_.Tensor, aten.mul.Tensor, aten.mul_.Tensor, aten.addcmul.default}
MULTIPLICATIONS = {aten.mul.Tensor, aten.mul_.Tensor}
# The same of one tensor.
CURVES = {aten.sigmoid.default, aten.sigmoid_.default, aten.leaky_relu.default, aten.leaky_relu_.default}
PRODUCTS = {aten.matmul.default, aten.bmm.default}
# Activations that an integer kernel applies to its own result before rounding.
FUSED_ACTIVATIONS = {
    aten.relu.default, aten.relu_.default, aten.hardtanh.default, aten.hardtanh_.default, aten.relu6.default,
    aten.clamp.default,
}  # fmt: skip
# Operators that only move or compare values, so that their result has the scale of their input.
SCALE_KEEPING = {
    aten.max_pool2d.default, aten.amax.default, aten.flatten.using_ints, aten.view.default,
    aten.reshape.default, aten.permute.default, aten.transpose.int, aten.dropout.default, aten.dropout_.default,
    aten.cat.default, aten.stack.default, aten.select.int, aten.slice.Tensor, aten.index_select.default,
    aten.index.Tensor, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.expand.default,
    aten.repeat.default, aten.roll.default, aten.flip.default, aten.contiguous.default, aten.clone.default,
    aten.pixel_shuffle.default, aten.pixel_unshuffle.default, aten.channel_shuffle.default,
    aten.upsample_nearest2d.vec, aten.unflatten.int, aten.movedim.int, aten.swapaxes.default,
}  # fmt: skip
JOINING = {aten.cat.default, aten.stack.default}
# Means, whose range is smaller than that of their input.
POOLING = {aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default}
# Operators like those that keep the scale, which give a list of tensors.
SPLITTING = {
    aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int, aten.tensor_split.sections,
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


class LayerPlacement(Quantizer):
    """Quantises what convolutions and linear layers read and their weights. All else computes in floating point.

    So do convolutions whose groups have several channels, since ncnn keeps a single scale for the weights of a group.

    Args:
        layers: Specs of each layer, by module path.
    """

    def __init__(self, layers: Mapping[str, LayerSpec]):
        self.layers = layers

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            if not is_weighted(node) or _shares_scales(node):
                continue
            spec = self.layers[layer_name(node)]
            read = {node.args[0]: spec.activation, node.args[1]: spec.weight}
            annotate(node, read, None)
        return model

    def validate(self, model: GraphModule) -> None:
        """Accept every graph."""


def _shares_scales(node: Node) -> bool:
    """Whether a layer is a convolution with several groups, of several channels each."""
    groups = node.args[6] if node.target != aten.linear.default and len(node.args) > 6 else 1
    weight: Any = node.args[1]
    return groups not in (1, weight.meta["val"].shape[0])


def annotate(
    node: Node, inputs: Mapping[Any, QuantizationSpecBase | None], output: QuantizationSpecBase | None
) -> None:
    """Say which specs a node reads its inputs in and gives its result in. None stands for floating point."""
    given = {source: spec for source, spec in inputs.items() if spec}
    node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(input_qspec_map=given, output_qspec=output, _annotated=True)


def _is_float(value: Any) -> bool:
    """Whether the value of a node is a tensor of floating-point numbers, and no size and no index."""
    return isinstance(value, Tensor) and value.is_floating_point()


def _float_inputs(node: Node) -> list[Node]:
    return [source for source in node.all_input_nodes if _is_float(source.meta.get("val"))]


def keeps_scale(node: Node) -> bool:
    """Whether the result of a node has the scale of its input."""
    if node.target == aten.constant_pad_nd.default:
        return len(node.args) < 3 or not node.args[2]
    if node.target == aten.pad.default:
        return len(node.args) < 4 or node.args[3] in (None, 0)
    return node.target in SCALE_KEEPING


def _meets_constant(node: Node) -> bool:
    """Whether the result of a node is concatenated with a constant, such as a class token, at once or after moves."""
    return any(
        (user.target in JOINING and any(map(_is_constant, user.all_input_nodes)))
        or (keeps_scale(user) and _meets_constant(user))
        for user in node.users
    )


def _is_constant(node: Node) -> bool:
    """Whether a node is a constant, or only moves or repeats one."""
    sources = _float_inputs(node)
    return node.op == "get_attr" or (keeps_scale(node) and bool(sources) and all(map(_is_constant, sources)))


class FusedPlacement(Quantizer):
    """Places quantizers so that integer runtimes find no float operator between two integer ones.

    The inputs and weights of convolutions and linear layers are quantised, and so are their outputs, after the
    activation that follows. Elementwise operators such as additions have their inputs and their output quantised if
    anything that follows reads integers, and compute in floating point if not, as on the way past the blocks of a
    transformer. What only moves values keeps the scale of its input.

    A tensor that several operators read gets the finest spec that any of them asks for. An operator that asks for a
    coarser spec rounds the tensor again.

    Args:
        layers: Specs of each layer, by module path.
        between: Spec for elementwise operators and for the network's output, or None for floating point.
        kernels: What the runtimes have integer kernels for.
        unfused: Whether the result of every convolution is quantised before its activation as well.
        before_activation: Whether the result of every convolution is quantised before its activation instead of after.
    """

    def __init__(
        self,
        layers: Mapping[str, LayerSpec],
        between: QuantizationSpec | None,
        kernels: Kernels,
        unfused: bool = False,
        before_activation: bool = False,
    ):
        self.layers, self.between, self.kernels = layers, between, kernels
        self.unfused, self.before_activation = unfused, before_activation
        self.wanted: dict[Node, QuantizationSpec | None] = {}

    def annotate(self, model: GraphModule) -> GraphModule:
        # From the end, so that what the readers of a node want is known.
        for node in reversed(model.graph.nodes):
            self.wanted[node] = self._wanted(node)
        for node in model.graph.nodes:
            if node.op == "call_function" and (node.target in SPLITTING or _is_float(node.meta.get("val"))):
                self._annotate(node)
        return model

    def validate(self, model: GraphModule) -> None:
        """Accept every graph. Operators without an annotation stay in floating point, which coverage reports."""

    def _annotate(self, node: Node) -> None:
        wanted, inputs = self.wanted[node], _float_inputs(node)
        if is_weighted(node):
            data, weight, *_ = node.args
            assert isinstance(data, Node) and isinstance(weight, Node)
            spec = self.layers[layer_name(node)]
            annotate(node, {data: spec.activation, weight: spec.weight}, self._output(node))
        elif self._is_product(node):
            annotate(node, self._read(inputs), wanted)
        elif self._combines(node):
            if wanted:
                annotate(node, self._read(inputs), self._output(node))
        elif self._is_factor(node):
            annotate(node, {inputs[0]: self.between if wanted else None}, None)
        elif node.target in FUSED_ACTIVATIONS and not self.before_activation:
            annotate(node, {}, wanted or self._left_by(inputs[0]))
        elif node.target is getitem and node.all_input_nodes[0].target in SPLITTING:
            (parts,) = node.all_input_nodes
            if self.wanted[parts]:
                annotate(node, {}, SharedQuantizationSpec((parts.all_input_nodes[0], parts)))
        elif wanted and inputs and node.target in SPLITTING:
            annotate(node, {inputs[0]: wanted}, None)
        elif wanted and node.target in POOLING:
            annotate(node, {inputs[0]: wanted}, wanted)
        elif wanted and inputs and (keeps_scale(node) or node.target in FUSED_ACTIVATIONS):
            first, *others = inputs  # a concatenation has several
            shared = SharedQuantizationSpec((first, node))
            # OpenVINO 2026.4 crashes on some activations between two roundings behind a concatenation.
            output = None if node.target in JOINING and self._is_followed(node) else shared
            annotate(node, {first: wanted, **dict.fromkeys(others, shared)}, output)

    def _is_product(self, node: Node) -> bool:
        """Whether a node is a product of two activations that has an integer kernel."""
        return self.kernels.products and node.target in PRODUCTS and not any(n.op == "get_attr" for n in node.args)  # type: ignore[union-attr]

    def _is_factor(self, node: Node) -> bool:
        """Whether a node changes nothing but the scale of the integers that it reads."""
        return self.kernels.rescaling and is_factor(node)

    def _combines(self, node: Node) -> bool:
        """Whether a node is an elementwise operator that has an integer kernel."""
        if node.target in MULTIPLICATIONS:
            return all(isinstance(n, Node) and n.op != "get_attr" for n in node.args)
        if node.target == aten.addcmul.default:
            # Nothing has a kernel for it, and OpenVINO crashes on some that read integers, such as DenseNet's.
            return self.unfused
        return node.target in COMBINING and not is_factor(node) or self.kernels.curves and node.target in CURVES

    def _read(self, inputs: list[Node]) -> dict[Node, QuantizationSpec | None]:
        """The specs in which an operator reads tensors, other than factors, which read integers themselves."""
        return {source: self.between for source in inputs if not self._is_factor(source)}

    def _output(self, node: Node) -> QuantizationSpec | None:
        """The spec of the node's result, or None if the next operator belongs to it and has its result quantised."""
        if self._is_followed(node):
            return None
        return self.wanted[node] or self._left_by(node)

    def _is_followed(self, node: Node) -> bool:
        """Whether an activation alone reads the result of a node, which is rounded after it and not before."""
        followers = list(node.users)
        followed = len(followers) == 1 and followers[0].target in FUSED_ACTIVATIONS
        return followed and not (self.unfused or self.before_activation)

    def _left_by(self, node: Node) -> QuantizationSpec | None:
        """The spec of a result that nothing reads as integers, where the kernel of its layer gives only integers."""
        if not is_weighted(node):
            return None
        # OpenVINO 2026.4 gives all channels the bias of the first where integers of a convolution meet a constant.
        if self.kernels.float_results and (node.target == aten.linear.default or _meets_constant(node)):
            return None
        spec = self.layers[layer_name(node)]
        return self.between if spec.weight and spec.activation else None

    def _wanted(self, node: Node) -> QuantizationSpec | None:
        """The spec with the most levels among those that the readers of `node` ask for."""
        wanted = [spec for reader in node.users if (spec := self._reads(reader))]
        return max(wanted, key=lambda spec: (spec.quant_max or 0) - (spec.quant_min or 0), default=None)

    def _reads(self, reader: Node) -> QuantizationSpec | None:
        """The spec that `reader` asks for."""
        if is_weighted(reader):
            return self.layers[layer_name(reader)].activation
        if reader.op == "output" or self._is_product(reader):
            return self.between
        if self._combines(reader) or self._is_factor(reader):
            return self.between if self.wanted[reader] else None
        passing = FUSED_ACTIVATIONS | SPLITTING | POOLING | {getitem}
        return self.wanted[reader] if reader.target in passing or keeps_scale(reader) else None
