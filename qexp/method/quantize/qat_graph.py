"""A prepared graph that can be trained: convolutions get their batch norms back, and hand over what they learned at the end."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qexp.data.base import ImageData
from qexp.method.graph import export
from qexp.method.quantize.fake_quantize import FakeQuantize, WeightFakeQuantize, quantizers
from qexp.method.quantize.placement import BATCH_NORM, WEIGHTED, layer_path

SMALLEST = 1e-5  # of a channel's factor, by which its result is divided


class ConvNorm(nn.Module):
    """Convolution and batch norm as one: the weight is rounded as it will be when both are folded.

    The flow of torch.ao and torchao for training with quantisation (Krishnamoorthi, "Quantizing deep convolutional networks for
    efficient inference", 2018, section 3.2.2): weights are scaled by the batch norm's factors before they are rounded and scaled back
    after, and batch norm works on the result with the batch's statistics; once frozen, with the running ones.

    In that flow the factors are those of the running statistics, which change with every batch, and with them the integers: at 2 bits
    so many that the statistics never fit them. Where each channel has scales of its own, the factors that training starts from are
    kept for rounding instead, and the scales take up the rest when both are folded: integers depend on weights and scales alone.
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
        """[C], of each channel's weights when both are folded; never 0, and of the sign that it had at the start."""
        assert self.norm.running_var is not None
        return self.sign * (self.sign * self.norm.weight / torch.sqrt(self.norm.running_var + self.norm.eps)).clamp(
            min=SMALLEST
        )

    def keep_sign(self) -> None:
        """Undo a step of the optimizer past 0, where integers could not follow: the least of them has no opposite."""
        with torch.no_grad():
            self.norm.weight.copy_(self.sign * (self.sign * self.norm.weight).clamp(min=0))

    def rescaled(self) -> Tensor:
        """[C], above 0: what the scales of each channel's weights are multiplied by when both are folded."""
        return self.factor() / self.start if self.fixed else torch.ones_like(self.start)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of a convolution that computes the same at inference."""
        factor = self.factor()
        assert self.norm.running_mean is not None
        return self.weight * _per_channel(factor, self.weight), self.norm.bias - self.norm.running_mean * factor

    def forward(self, x: Tensor) -> Tensor:
        factor = self.start if self.fixed else self.factor()
        weight = self.weight * _per_channel(factor, self.weight)
        rounded = weight if self.quantizer is None else self.quantizer(weight)
        if self.frozen or not self.training:
            return self.operator(x, rounded * _per_channel(self.rescaled(), rounded), self.folded()[1], *self.rest)
        # The flow divides the convolution's result, a far larger tensor than its weight, to the same end.
        return self.norm(self.operator(x, rounded / _per_channel(factor.detach(), rounded), None, *self.rest))


def _per_channel(factor: Tensor, weight: Tensor) -> Tensor:
    return factor.reshape(-1, *[1] * (weight.dim() - 1))


def trainable(prepared: GraphModule, network: nn.Module, data: ImageData) -> GraphModule:
    """A copy of the graph, with the same quantizers and parameters, in which every folded batch norm is one again."""
    norms = folded_norms(network, data)
    modules = dict(network.named_modules())
    copied = torch.fx.Graph()
    (logits,) = copied.graph_copy(prepared.graph, {})  # type: ignore[misc]  # an exported graph gives a tuple
    copied.output(logits)
    trained = GraphModule(prepared, copied)
    for node in list(trained.graph.nodes):
        if node.op == "call_function" and node.target in WEIGHTED and (path := layer_path(node)) in norms:
            _restore(trained, node, modules[path].weight, modules[norms[path]])
    trained.graph.eliminate_dead_code()
    trained.recompile()
    fresh = GraphModule(trained, trained.graph)  # without the weights and quantizers that moved into a ConvNorm
    for parameter in fresh.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return fresh


def folded_norms(network: nn.Module, data: ImageData) -> dict[str, str]:
    """The batch norm that follows each convolution, both by module path."""
    found = {}
    for node in export(network, data).graph.nodes:
        if node.target in WEIGHTED and len(node.users) == 1 and (reader := next(iter(node.users))).target in BATCH_NORM:
            found[layer_path(node)] = layer_path(reader)
    return found


def _restore(graph: GraphModule, node: Node, weight: Tensor, norm: Any) -> None:
    source = node.args[1]
    assert isinstance(source, Node) and isinstance(node.args[0], Node) and callable(node.target)
    quantizer = graph.get_submodule(str(source.target)) if source.op == "call_module" else None
    assert quantizer is None or isinstance(quantizer, FakeQuantize)
    name = f"{layer_path(node).replace('.', '_')}_with_norm"
    graph.add_submodule(name, ConvNorm(weight, norm, quantizer, node.target, node.args[3:]))
    with graph.graph.inserting_before(node):
        joined = graph.graph.call_module(name, (node.args[0],))
    joined.meta = dict(node.meta)
    node.replace_all_uses_with(joined)
    graph.graph.erase_node(node)


@torch.no_grad()
def estimate_norms(trained: nn.Module, images: Tensor, batch: int) -> None:
    """Batch norms' statistics anew, as the mean of those of x[N,C,H,W] in batches, in the network as it is now.

    Running ones are of a network that still changed (Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021, section 3; for quantised
    ones Nagel et al., "Overcoming Oscillations in Quantization-Aware Training", 2022). Left alone are layers whose rounding depends on
    them. The graph is in eval mode afterwards.
    """
    trained.eval()
    joined = [module for module in trained.modules() if isinstance(module, ConvNorm) and module.fixed]
    momenta = [module.norm.momentum for module in joined]
    for module in joined:
        module.training = module.norm.training = True  # and not its quantizer, which may follow what it sees
        module.norm.reset_running_stats()
        module.norm.momentum = None  # the mean of all
    for chunk in images.split(batch):
        trained(chunk)
    for module, momentum in zip(joined, momenta, strict=True):
        module.norm.momentum = momentum
    trained.eval()


def hand_over(trained: GraphModule, prepared: GraphModule) -> None:
    """Put folded weights and biases where the prepared graph has them; its quantizers are the trained ones already."""
    with torch.no_grad():
        for node in prepared.graph.nodes:
            if node.op != "call_function" or node.target not in WEIGHTED:
                continue
            name = f"{layer_path(node).replace('.', '_')}_with_norm"
            if hasattr(trained, name):
                joined = trained.get_submodule(name)
                assert isinstance(joined, ConvNorm)
                for place, value in zip(node.args[1:3], joined.folded(), strict=True):
                    prepared.get_parameter(_constant(place)).copy_(value)
                if joined.fixed and joined.quantizer is not None:
                    scale = joined.quantizer.scale  # one of each channel or, in groups, several
                    scale.mul_(joined.rescaled().repeat_interleave(len(scale) // len(joined.start)))
    for quantizer in quantizers(prepared).values():
        quantizer.keep_scale()


def _constant(node: Any) -> str:
    while node.op == "call_module":
        node = node.args[0]
    return str(node.target)


def learn_ranges(trained: GraphModule, activations: str, weights: str, values: dict[str, int]) -> None:
    """Let every quantizer learn: how activations and how weights do is one of LEARNING.

    values: of one tensor at each quantizer, by module name, as of `sizes`. The scale's gradient is divided by
    sqrt(values * quant_max), as in LSQ (Esser et al., 2020, section 2.2); the values of a layer are counted together where each
    of its channels has a scale, so that those of few weights do not jump.
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
    """Values of one tensor at each quantizer, by module name, for one image x[1,C,H,W]."""
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
