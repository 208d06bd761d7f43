"""Networks that return several things, of which one is the logits, or more logits than are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from qexp.model.base import build_network, check_logits, evaluating
from qexp.types import DataSpec, UserError


def network_for(config: DictConfig, data: DataSpec, network: nn.Module | None = None) -> nn.Module:
    """Build the network of a `model` config, which returns the logits of the data's classes and nothing else.

    Args:
        config: The config of the model. Its `output` is the place of the logits in the tuple or the dict that the
            network returns. None finds the only one that has their shape.
        data: The dataset.
        network: A network that stands in for the one of the config, which is changed in place. None builds that.

    Raises:
        UserError: The network cannot be built or cannot take the images, or what it returns is not the logits.
    """
    network = build_network(config) if network is None else network
    key = config.get("output")
    found = outputs_of(network, data)
    if found or key is not None:
        if not found:
            check_logits(network, config.id, data)
        select_output(network, _chosen(found, key, config.id, data))
    check_logits(network, config.id, data)
    if data.logits:
        select_logits(network, data.logits)
    return network


def outputs_of(network: nn.Module, data: DataSpec) -> dict[Any, Any]:
    """What the network in eval mode returns for two images, by place or key. Empty if that is a single value."""
    try:
        with torch.no_grad(), evaluating(network):
            returned = network(torch.zeros(2, *data.input_shape))
    except Exception:
        return {}  # check_logits says what is wrong
    if isinstance(returned, Mapping):
        return dict(returned)
    return dict(enumerate(returned)) if isinstance(returned, (tuple, list)) else {}


def _chosen(found: dict[Any, Any], key: Any, name: str, data: DataSpec) -> Any:
    wanted = (2, data.network_outputs)
    shapes = {k: tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__ for k, v in found.items()}
    listed = ", ".join(f"{k}: {shape}" for k, shape in shapes.items()) or "a single value"
    if key is not None:
        known = {str(k): k for k in found}
        if str(key) not in known:
            raise UserError(f"model.output={key}: the model {name} returns no such output, but {listed}.")
        return known[str(key)]
    fitting = [k for k, shape in shapes.items() if shape == wanted]
    if len(fitting) != 1:
        which = "none of which has" if not fitting else "several of which have"
        raise UserError(
            f"The model {name} returns {listed} for 2 images, {which} the shape {wanted} of logits for {data.name}. "
            "Say which are the logits: model.output=PLACE."
        )
    return fitting[0]


def select_output(network: nn.Module, key: Any) -> None:
    """Let a network return one of its outputs, in place. Its weights keep their names.

    Args:
        network: The network, whose class becomes a subclass of its own.
        key: The place of the output in the tuple, or its key in the dict.
    """
    kind = type(network)

    class Selected(kind):  # type: ignore[misc,valid-type]
        def forward(self, x: Tensor) -> Any:
            returned = super().forward(x)
            return returned if isinstance(returned, Tensor) else returned[key]

    _become(network, Selected)


def select_logits(network: nn.Module, logits: tuple[int, ...]) -> None:
    """Let a network return only some of its logits, in place. Its weights keep their names.

    Args:
        network: The network, whose class becomes a subclass of its own.
        logits: Their indices, in the order in which they are returned.
    """
    kind = type(network)

    class Selected(kind):  # type: ignore[misc,valid-type]
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).index_select(1, self.answering_logits)

    _become(network, Selected)
    # Graphs take it along and devices get it, but files of weights, which know nothing of this choice, lack it.
    network.register_buffer("answering_logits", torch.tensor(logits), persistent=False)


def _become(network: nn.Module, selected: type[nn.Module]) -> None:
    """Give a network a subclass of its class. Messages, tables and keys name the class that the user wrote."""
    kind = type(network)
    selected.__name__, selected.__qualname__, selected.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    network.__class__ = selected
