"""The layers of a network that two smaller ones can stand for, and what these layers read."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qexp.data.base import ImageData
from qexp.data.images import in_steps
from qexp.method.graph import example_input
from qexp.method.prune.base import PRUNABLE
from qexp.method.prune.factors import Decomposition, as_matrix, factored

BATCH = 32  # images per pass in which the inputs of layers are seen


@dataclass(frozen=True)
class Site:
    """A layer that may be factorised.

    Attributes:
        path: Module path of the layer.
        module: The layer.
        axes: How many axes of the kernel its first factor has.
        positions: For how many places of one image each of its factors is computed.
    """

    path: str
    module: nn.Conv2d | nn.Linear
    axes: int
    positions: tuple[int, int]

    def costs(self, target: str) -> tuple[int, int]:
        """What the layer costs as it is, and what each rank costs: parameters, or else multiply-accumulates."""
        first, second = (1, 1) if target == "parameters" else self.positions
        rows, columns = as_matrix(self.module.weight, self.axes).shape
        return second * self.module.weight.numel(), first * rows + second * columns

    def ranks(self, target: str, unit: int, least: int) -> list[int]:
        """The multiples of `unit`, at least `least`, that cost less than the layer as it is."""
        whole, each = self.costs(target)
        most = min(*as_matrix(self.module.weight, self.axes).shape, (whole - 1) // each)
        return [rank for rank in range(unit, most + 1, unit) if rank >= least]


def factorable(network: nn.Module, data: ImageData, axes: int) -> tuple[list[Site], dict[str, str]]:
    """Find the layers that two others can stand for.

    Args:
        network: The network, which is not changed.
        data: The images that it is for.
        axes: How many axes of a kernel the first factor has.

    Returns:
        These layers, and the reason why not for each other layer, by module path.
    """
    owners = Counter(id(parameter) for _, parameter in network.named_parameters(remove_duplicate=False))
    layers = {name: module for name, module in network.named_modules() if isinstance(module, PRUNABLE)}
    calls: dict[str, list[tuple[torch.Size, torch.Size]]] = {name: [] for name in layers}
    with watching(layers, lambda name, x, y: calls[name].append((x.shape, y.shape))), torch.no_grad():
        network(example_input(data, 1))
    reasons, sites = {}, []
    for name, module in layers.items():
        if reason := why_not(name, module, owners[id(module.weight)], len(calls[name])):
            reasons[name] = reason
        else:
            assert isinstance(module, (nn.Conv2d, nn.Linear))
            own = min(axes, module.weight.dim() - 2)
            sites.append(Site(name, module, own, positions(module, own, calls[name])))
    possible = [site for site in sites if runs(network, data, [site])] if not runs(network, data, sites) else sites
    reasons |= {site.path: "its weight is also read by another module" for site in sites if site not in possible}
    return possible, reasons


def why_not(name: str, module: nn.Module, owners: int, calls: int) -> str:
    """The reason why a layer cannot be factorised, or nothing."""
    if not isinstance(module, (nn.Conv2d, nn.Linear)):
        return "neither Conv2d nor Linear"
    if not name:
        return "it is the network itself"
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return "depthwise" if module.groups == module.in_channels else "grouped"
    plain = nn.Conv2d if isinstance(module, nn.Conv2d) else nn.Linear
    if any(getattr(type(module), of, None) is not getattr(plain, of, None) for of in ("forward", "_conv_forward")):
        return "it computes in a way of its own"
    if parametrize.is_parametrized(module) or module._forward_pre_hooks or module._forward_hooks:
        return "its weight or its result is computed by something else too"
    if owners > 1:
        return "its weight belongs to several modules"
    return "" if calls else "its weight is read without calling it"


def positions(
    module: nn.Conv2d | nn.Linear, axes: int, calls: Sequence[tuple[torch.Size, torch.Size]]
) -> tuple[int, int]:
    """For how many places of one image each factor is computed, in calls with these shapes of input and output."""
    if isinstance(module, nn.Linear):
        return (sum(y[:-1].numel() for _, y in calls),) * 2
    in_second = [axis >= axes and length > 1 for axis, length in enumerate(module.kernel_size)]
    first = [[(x if second else y)[2 + axis] for axis, second in enumerate(in_second)] for x, y in calls]
    return sum(torch.Size(shape).numel() for shape in first), sum(y[2:].numel() for _, y in calls)


def runs(network: nn.Module, data: ImageData, sites: Sequence[Site]) -> bool:
    """Whether the network still runs when two layers stand for each of these."""
    made = copy.deepcopy(network)
    for site in sites:
        rows, columns = as_matrix(site.module.weight, site.axes).shape
        shape, zeros = tuple(site.module.weight.shape), torch.zeros
        part = Decomposition(zeros(rows, 1), zeros(1), zeros(1, columns), None, shape, site.axes)
        made.set_submodule(site.path, factored(site.module, *part.factors(1), site.module.bias))
    try:
        with torch.no_grad():
            made(example_input(data, 1))
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True


def input_statistics(
    network: nn.Module, data: ImageData, sites: Sequence[Site], images: int
) -> list[tuple[Tensor, Tensor]]:
    """The covariance [N,N] and the mean [N] of what the first factor of each layer reads, over calibration images.

    Args:
        network: The network in eval mode.
        data: Source of the images.
        sites: The layers.
        images: How many of the images, at most.
    """
    by_path = {site.path: site for site in sites}
    sums: dict[str, list[Any]] = {site.path: [0, 0.0, 0.0] for site in sites}

    def add(path: str, x: Tensor, _: Tensor) -> None:
        rows = first_inputs(by_path[path], x).double()  # float32 would not do where a mean is large
        for index, value in enumerate((len(rows), rows.T @ rows, rows.sum(0))):
            sums[path][index] += value

    with watching({site.path: site.module for site in sites}, add), torch.no_grad():
        for x in in_steps(data.calibration()[:images], BATCH):
            network(x)
    means = [total / count for count, _, total in sums.values()]
    return [
        (squares / count - mean.outer(mean), mean)
        for (count, squares, _), mean in zip(sums.values(), means, strict=True)
    ]


def first_inputs(site: Site, x: Tensor) -> Tensor:
    """What the first factor of a layer reads of the layer's input: rows [P,C*K1], one for each place."""
    layer = site.module
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    own = [axis < site.axes or length == 1 for axis, length in enumerate(layer.kernel_size)]
    pads = [pad if own[1 - index // 2] else 0 for index, pad in enumerate(layer._reversed_padding_repeated_twice)]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode

    def along(values: Sequence[int]) -> tuple[int, ...]:
        return tuple(value if mine else 1 for mine, value in zip(own, values, strict=True))

    patches = nn.functional.unfold(
        nn.functional.pad(x, pads, mode), along(layer.kernel_size), along(layer.dilation), stride=along(layer.stride)
    )
    return patches.transpose(1, 2).flatten(0, 1)


@contextmanager
def watching(modules: Mapping[str, nn.Module], see: Any) -> Iterator[None]:
    """Call see(name, input, output) whenever one of these modules computes, until the block ends."""
    handles = [
        module.register_forward_hook(lambda _, inputs, output, name=name: see(name, inputs[0], output))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
