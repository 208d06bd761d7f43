"""Checks that a graph computes what its network does, so that a wrong graph never becomes an artifact."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from qexp.data.images import LARGE, Images
from qexp.method.batch_norms import FOLDED
from qexp.types import UserError

TOLERANCE = 1e-4  # largest error, as a share of the largest value
BATCH_TOLERANCE = 1e-3  # the same between one image alone and several, for which other kernels may run
ROUNDINGS = 4  # how much more than a change of last digits a right graph may change the logits
IMAGES, LARGE_IMAGES = 8, 2  # how many are compared, and how many that have more pixels than LARGE


def compared(images: Images) -> Tensor:
    """The first few images, on which graphs are compared. A large network takes seconds for each large image."""
    first = images[:IMAGES]
    return first[:LARGE_IMAGES] if first.shape[-2:].numel() > LARGE else first


def verify(graph: nn.Module, network: nn.Module, images: Images, what: str) -> None:
    """Check that a graph gives the logits of its network.

    Args:
        graph: The graph, which may be a GraphModule that torch.export made, or any module.
        network: The network in eval mode that the graph was made from.
        images: Normalised images x[N,C,H,W], of which the first few are used.
        what: What the graph is, for the message.

    Raises:
        UserError: The network gives other logits at a second call, or the largest error of the graph's logits is above
            TOLERANCE of the largest logit, and above what rounding does to them if that is more. The message names the
            first module at which the two part, where that can be told.
    """
    x = compared(images)
    name = type(network).__name__
    with torch.no_grad():
        wanted = network(x)
        found = graph(x)
        if _error(found, wanted) <= TOLERANCE:
            return
        _check_repeatable(network, x, wanted)
        allowed = _allowed(network, x, wanted)
        if _error(found, wanted) <= allowed:
            return
        values = module_outputs(network, x)
        place = _parting(graph, values, x) if isinstance(graph, GraphModule) else ""
    where = f" They part at the module {place!r}." if place else ""
    raise UserError(
        f"{what} of {name} computes something else than the network: its logits differ by "
        f"{_error(found, wanted):.2g} of the largest one, and {allowed:.2g} is allowed.{where} "
        "Forward may depend on values of its input, or use an operator that is not exported as it is computed."
    )


def _allowed(network: nn.Module, images: Tensor, wanted: Tensor) -> float:
    """The error that a right graph may have: TOLERANCE, or more where the network makes more of rounding.

    Deep networks with random weights amplify a change of the last digit, in images and in weights, some thousand times.
    BATCH_TOLERANCE is the limit for all.
    """
    generator = torch.Generator().manual_seed(0)

    def changed(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        signs = torch.randn(x.shape, generator=generator).sign().to(x)
        return x * (1 + torch.finfo(x.dtype).eps / 2 * signs)

    # A copy, since torch.func.functional_call leaves tensors in the place of parameters where modules are shared.
    other = copy.deepcopy(network)
    for weight in other.parameters():
        weight.copy_(changed(weight))
    logits = other(changed(images))
    return min(max(TOLERANCE, ROUNDINGS * _error(logits, wanted)), BATCH_TOLERANCE)


def _error(found: Any, wanted: Any) -> float:
    """The largest error as a share of the largest value, and infinite where one is no tensor or of another shape."""
    if not isinstance(found, Tensor) or not isinstance(wanted, Tensor) or found.shape != wanted.shape:
        return float("inf")
    if not wanted.numel():
        return 0.0
    found, wanted = found.double(), wanted.double()
    error = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=torch.finfo(torch.float32).tiny))
    return error if error == error else float("inf")


def check_alone(network: nn.Module, images: Images) -> None:
    """Check that the logits of an image do not depend on the images beside it.

    Args:
        network: The network in eval mode.
        images: Normalised images x[N,C,H,W], of which the first few are used.

    Raises:
        UserError: They do, or change at a second call. The message names batch norms that have no statistics of their
            own.
    """
    x = compared(images)
    with torch.no_grad():
        together, alone = network(x), torch.cat([network(image) for image in x.split(1)])
        _check_repeatable(network, x, together)
    if _error(alone, together) <= BATCH_TOLERANCE:
        return
    blind = [
        path
        for path, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
    ]
    cause = (
        f"{', '.join(blind)} compute statistics of the batch (track_running_stats=False). Give them running statistics "
        "and train again, or use GroupNorm or InstanceNorm"
        if blind
        else "something in forward computes over the batch"
    )
    raise UserError(
        f"{type(network).__name__} gives an image other logits if other images are beside it, so neither its accuracy "
        f"nor its compression would mean anything: {cause}."
    )


def _check_repeatable(network: nn.Module, images: Tensor, wanted: Tensor) -> None:
    name = type(network).__name__
    if not wanted.isfinite().all():
        raise UserError(f"{name} gives logits that are not finite for calibration images. Its weights may be damaged.")
    if _error(network(images), wanted) > TOLERANCE:
        raise UserError(
            f"{name} gives other logits for the same images at each call, although it is in eval mode. "
            "A call of F.dropout needs training=self.training."
        )


def module_outputs(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What each module returns for images x[N,C,H,W], by module path, in the order in which the modules end.

    Modules that are called several times are left out, as are those that return something other than a tensor.
    """
    found: dict[str, list[Any]] = {}

    def remember(path: str) -> Callable[..., None]:
        # Copies, since the next module may change its input in place.
        return lambda module, arguments, result: found.setdefault(path, []).append(
            result.clone() if isinstance(result, Tensor) else result
        )

    hooks = [module.register_forward_hook(remember(path)) for path, module in network.named_modules()]
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return {path: results[0] for path, results in found.items() if len(results) == 1 and isinstance(results[0], Tensor)}


class _Values(Interpreter):
    """Runs a graph and keeps what the last node of each module gives, by module path."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.values: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        # A layer that a batch norm was folded into gives what the batch norm gives.
        for path, _ in (n.meta.get(FOLDED) or n.meta.get("nn_module_stack") or {}).values():
            self.values[path] = result.clone() if isinstance(result, Tensor) else result
        return result


def _parting(graph: GraphModule, wanted: dict[str, Tensor], images: Tensor) -> str:
    """The path of the first module whose result in the graph is not the network's, or "" if there is none."""
    run = _Values(graph)
    run.run(images)
    paths = [path for path in wanted if isinstance(run.values.get(path), Tensor)]
    for path in paths:
        if _error(run.values[path], wanted[path]) > TOLERANCE:
            return path
    return ""
