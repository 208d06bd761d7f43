"""The graph that quantisation-aware training trains: a prepared graph whose convolutions get their batch norms back.

At the end of training, what was learned is handed over to the prepared graph.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qexp.data.base import ImageData
from qexp.data.images import Images
from qexp.method.batch_norms import BATCH_NORM, foldable_layer, readers_of_constants
from qexp.method.graph import graph_of, trace
from qexp.method.layers import is_weighted, layer_name, weight_named
from qexp.method.quantize.fake_quantize import FakeQuantize, WeightFakeQuantize, quantizers

SMALLEST = 1e-5  # least magnitude of a channel's factor, which the channel's weights are divided by


class ConvNorm(nn.Module):
    """A convolution and its batch norm as one module, which rounds the weight as it will be rounded after folding.

    This is the flow of torch.ao and torchao for training with quantisation (Krishnamoorthi, "Quantizing deep
    convolutional networks for efficient inference", 2018, section 3.2.2). Weights are scaled by the factors of the
    batch norm before they are rounded, and scaled back afterwards. The batch norm then works on the result. It uses the
    statistics of the batch or, once it is frozen, the running statistics.

    In that flow the factors are computed from the running statistics, which change with every batch. The integers
    change with them, and at 2 bits so many of them change that the statistics never fit them. Where each channel has
    scales of its own, and these need not be powers of two, rounding therefore keeps the factors that training starts
    from, and the scales take up the difference when both are folded. The integers then depend on the weights and the
    scales alone.

    Args:
        weight: Weight of the convolution.
        norm: The batch norm that follows the convolution. A copy of it is trained.
        quantizer: Quantizer of the weight, or None if the weight stays in floating point.
        operator: ATen operator of the convolution.
        rest: Arguments of the operator after the bias.
    """

    start: Tensor
    sign: Tensor

    def __init__(
        self,
        weight: Tensor,
        norm: nn.BatchNorm2d,
        quantizer: FakeQuantize | None,
        operator: Callable[..., Tensor],
        rest: tuple,
    ):
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.norm, self.quantizer, self.operator, self.rest = copy.deepcopy(norm), quantizer, operator, rest
        self.frozen = False
        self.fixed = quantizer is not None and quantizer.axis is not None and not quantizer.grid.power_of_two
        self.register_buffer("sign", torch.where(norm.weight.detach() < 0, -1.0, 1.0))
        self.register_buffer("start", self.factor().detach().clone())

    def factor(self) -> Tensor:
        """The factor [C] of each channel's weights in folding. It is never 0 and keeps the sign it had at the start."""
        assert self.norm.running_var is not None
        return self.sign * (self.sign * self.norm.weight / torch.sqrt(self.norm.running_var + self.norm.eps)).clamp(
            min=SMALLEST
        )

    def keep_sign(self) -> None:
        """Set the weights of the batch norm to 0 where a step of the optimizer has taken them past 0.

        The integers could not follow a change of sign, since the lowest of them has no opposite.
        """
        with torch.no_grad():
            self.norm.weight.copy_(self.sign * (self.sign * self.norm.weight).clamp(min=0))

    def rescaled(self) -> Tensor:
        """What the scales of each channel's weights are multiplied by in folding, [C] and above 0."""
        return self.factor() / self.start if self.fixed else torch.ones_like(self.start)

    def folded(self) -> tuple[Tensor, Tensor]:
        """The weight and bias of a single convolution that computes the same at inference."""
        factor = self.factor()
        assert self.norm.running_mean is not None
        return self.weight * _per_channel(factor, self.weight), self.norm.bias - self.norm.running_mean * factor

    def forward(self, x: Tensor) -> Tensor:
        factor = self.start if self.fixed else self.factor()
        weight = self.weight * _per_channel(factor, self.weight)
        rounded = weight if self.quantizer is None else self.quantizer(weight)
        if self.frozen or not self.training:
            return self.operator(x, rounded * _per_channel(self.rescaled(), rounded), self.folded()[1], *self.rest)
        # torchao divides the convolution's result instead. This comes to the same, but it is a far larger tensor.
        return self.norm(self.operator(x, rounded / _per_channel(factor.detach(), rounded), None, *self.rest))


def _per_channel(factor: Tensor, weight: Tensor) -> Tensor:
    return factor.reshape(-1, *[1] * (weight.dim() - 1))


def trainable(prepared: GraphModule, network: nn.Module, data: ImageData) -> GraphModule:
    """Copy a graph for training: every batch norm that was folded into a convolution becomes a batch norm again.

    Args:
        prepared: The prepared graph. The copy shares its quantizers, and its parameters except those of convolutions
            that get a batch norm back.
        network: The network that the graph was exported from.
        data: The images that the network is for.
    """
    norms = folded_norms(network, data)
    modules = dict(network.named_modules())
    copied = torch.fx.Graph()
    (logits,) = copied.graph_copy(prepared.graph, {})  # type: ignore[misc]  # an exported graph gives a tuple
    copied.output(logits)
    trained = GraphModule(prepared, copied)
    for node in list(trained.graph.nodes):
        if is_weighted(node) and (name := layer_name(node)) in norms:
            bias = getattr(modules.get(name), "bias", None)
            _restore(trained, node, weight_named(network, name), plain_norm(modules[norms[name]], bias))
    trained.graph.eliminate_dead_code()
    trained.recompile()
    # Without the weights and quantizers that have moved into a ConvNorm.
    fresh = GraphModule(trained, trained.graph)
    for parameter in fresh.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return fresh


def plain_norm(norm: Any, bias: Tensor | None) -> nn.Module:
    """A batch norm by itself that computes what `norm` does after a layer with this bias, for a layer without it.

    It has weights, and no activation, whatever the class of `norm` has.
    """
    kind = nn.BatchNorm1d if isinstance(norm, nn.BatchNorm1d) else nn.BatchNorm2d
    made = kind(norm.num_features, norm.eps, norm.momentum)
    made.load_state_dict(norm.state_dict(), strict=False)
    if bias is not None:
        made.running_mean = norm.running_mean - bias.detach()
    return made.train(norm.training)


def folded_norms(network: nn.Module, data: ImageData) -> dict[str, str]:
    """The module path of the batch norm that is folded into each layer, by the layer's name."""
    graph = graph_of(trace(network, data))
    norms = [node for node in graph.graph.nodes if node.target == BATCH_NORM]
    readers = readers_of_constants(graph)
    folded = {norm: layer for norm in norms if (layer := foldable_layer(norm, readers))}
    return {layer_name(layer): [*norm.meta["nn_module_stack"].values()][-1][0] for norm, layer in folded.items()}


def _restore(graph: GraphModule, node: Node, weight: Tensor, norm: Any) -> None:
    source = node.args[1]
    assert isinstance(source, Node) and isinstance(node.args[0], Node) and callable(node.target)
    quantizer = graph.get_submodule(str(source.target)) if source.op == "call_module" else None
    assert quantizer is None or isinstance(quantizer, FakeQuantize)
    name = f"{layer_name(node).replace('.', '_')}_with_norm"
    graph.add_submodule(name, ConvNorm(weight, norm, quantizer, node.target, node.args[3:]))
    with graph.graph.inserting_before(node):
        joined = graph.graph.call_module(name, (node.args[0],))
    joined.meta = dict(node.meta)
    node.replace_all_uses_with(joined)
    graph.graph.erase_node(node)


@torch.no_grad()
def estimate_norms(trained: nn.Module, images: Images, batch: int) -> None:
    """Estimate the statistics of the batch norms anew, in the network as it is now.

    Running statistics come from a network that was still changing (Wu and Johnson, "Rethinking 'Batch' in BatchNorm",
    2021, section 3; for quantised networks, Nagel et al., "Overcoming Oscillations in Quantization-Aware Training",
    2022). The new statistics are the mean over all batches. Layers whose rounding depends on the statistics are left
    alone. The graph is in eval mode afterwards.

    Args:
        trained: The graph being trained.
        images: Images x[N,C,H,W].
        batch: Images per batch.
    """
    trained.eval()
    joined = [module for module in trained.modules() if isinstance(module, ConvNorm) and module.fixed]
    momenta = [module.norm.momentum for module in joined]
    for module in joined:
        # The quantizer stays in eval mode, since in training mode its scale may follow what it sees.
        module.training = module.norm.training = True
        module.norm.reset_running_stats()
        module.norm.momentum = None  # makes the statistics the mean over all batches
    device = next(trained.parameters()).device
    for chunk in images.split(batch):
        trained(chunk.to(device))
    for module, momentum in zip(joined, momenta, strict=True):
        module.norm.momentum = momentum
    trained.eval()


def hand_over(trained: GraphModule, prepared: GraphModule) -> None:
    """Copy the trained weights and biases, folded, into the prepared graph.

    Its quantizers are the trained ones already. Where rounding kept the factors that training started from, the scales
    of weights now take up the difference. From here on, no scale learns any more.
    """
    with torch.no_grad():
        for node in prepared.graph.nodes:
            if not is_weighted(node):
                continue
            name = f"{layer_name(node).replace('.', '_')}_with_norm"
            if hasattr(trained, name):
                joined = trained.get_submodule(name)
                assert isinstance(joined, ConvNorm)
                for place, value in zip(node.args[1:3], joined.folded(), strict=True):
                    prepared.get_parameter(_constant(place)).copy_(value)
                if joined.fixed and joined.quantizer is not None:
                    scale = joined.quantizer.scale  # one per channel or, with groups, several
                    scale.mul_(joined.rescaled().repeat_interleave(len(scale) // len(joined.start)))
    for quantizer in quantizers(prepared).values():
        quantizer.keep_scale()


def _constant(node: Any) -> str:
    while node.op == "call_module":
        node = node.args[0]
    return str(node.target)


def learn_ranges(trained: GraphModule, activations: str, weights: str, values: dict[str, int]) -> None:
    """Let the scales of all quantizers learn in training.

    The gradient of a scale is divided by sqrt(values * quant_max), as in LSQ (Esser et al., 2020, section 2.2). Where
    each channel of a layer has a scale, the values of the whole layer are counted, so that scales of few weights do not
    jump.

    Args:
        trained: The graph to train.
        activations: How the scales of activations learn, one of LEARNING.
        weights: How the scales of weights learn, one of LEARNING.
        values: How many values a tensor at each quantizer has, by module name, as `sizes` finds them.
    """
    for name, quantizer in quantizers(trained).items():
        is_weight = isinstance(quantizer, WeightFakeQuantize)
        learning = weights if is_weight else activations
        if learning == "moving_average":
            quantizer.learning = learning
        else:
            quantizer.learn_scale(learning)
            quantizer.gradient_factor = 1 / (values[name] * quantizer.grid.quant_max) ** 0.5


def sizes(trained: GraphModule, image: Tensor) -> dict[str, int]:
    """Count the values of the tensor at each quantizer, by module name, for one image x[1,C,H,W]."""
    found: dict[str, int] = {}

    def remember(name: str) -> Any:
        def hook(module: FakeQuantize, arguments: tuple[Tensor]) -> None:
            found[name] = arguments[0].numel()

        return hook

    hooks = [quantizer.register_forward_pre_hook(remember(name)) for name, quantizer in quantizers(trained).items()]
    with torch.no_grad():
        trained.eval()(image)
    for hook in hooks:
        hook.remove()
    return found
