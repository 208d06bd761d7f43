"""What the network and the images of a call become in the config, and the objects that stand in for them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from qexp.api.options import Words, literal
from qexp.api.trained import TrainedNetwork
from qexp.data.parts import FORMS, Parts
from qexp.model.given import taken
from qexp.model.pretrained import weights_digest
from qexp.places import choices
from qexp.types import UserError, nearest


@dataclass(frozen=True)
class Network:
    """A network of a call.

    Attributes:
        name: What tables and records call it.
        words: Overrides that choose it.
        module: The object that stands in for it, or None if the config builds it.
    """

    name: str
    words: Words
    module: nn.Module | None = None

    def same_as(self, other: Network) -> bool:
        """Whether both are one network, as far as weights and modules tell."""
        if self.module is None or other.module is None:
            return self.module is other.module and self.words == other.words
        kinds = [[(path, type(m)) for path, m in each.module.named_modules()] for each in (self, other) if each.module]
        return kinds[0] == kinds[1] and weights_digest(self.module) == weights_digest(other.module)


def network_of(network: Any, name: str | None = None, trains: bool = False) -> Network:
    """Find out which network is meant.

    Args:
        network: A module, a network that `qexp.train` gave, or the name of a file in conf/model.
        name: What tables call it, by default the name of its class.
        trains: Whether it is to be trained, so that it may be in training mode.

    Raises:
        UserError: It is something else, or a module that cannot be compressed.
    """
    if isinstance(network, str):
        known = [choice for choice in choices("model") if choice != "custom"]
        if network not in known:
            raise UserError(f"There is no model {network!r}. {nearest(network, known)}. Or give a torch.nn.Module.")
        return Network(network, {"model": network})
    if isinstance(network, TrainedNetwork):
        words = {"checkpoint": literal(str(network.folder), "folder")}
        inner = network_of(network.built_by or network.network, name or network.name, trains)
        return Network(inner.name, {**inner.words, **words}, inner.module)
    module = taken(network, trains)
    name = name or type(module).__name__
    return Network(name, {"model": "_given", "model.id": literal(name, "name")}, module)


def images_of(data: Any) -> tuple[Words, Parts | None]:
    """Find out which images are meant.

    Args:
        data: A folder, the name of a file in conf/data, or what `qexp.data.parts.Parts` takes.

    Returns:
        Overrides that choose them, and the object that stands in for them, or None if the config makes them.

    Raises:
        UserError: It is something else.
    """
    if isinstance(data, (str, os.PathLike)):
        place, known = Path(data).expanduser(), [each for each in choices("data") if each not in ("folder", "dataset")]
        if not place.is_dir() and str(data) in known:
            return {"data": str(data)}, None
        if not place.is_dir():
            raise UserError(
                f"There is no folder {place.absolute()}. {FORMS}; or the name of a dataset of qexp: {', '.join(known)}."
            )
        return {"data": "folder", "data.root": literal(str(place), "data")}, None
    parts = Parts(data)
    return {"data": "_given", "data.name": literal(parts.name, "data")}, parts


def modules_of(networks: Sequence[Network]) -> dict[str, nn.Module]:
    """The modules of networks by their names.

    Raises:
        UserError: Two different networks have the same name.
    """
    found: dict[str, Network] = {}
    for network in networks:
        if not found.setdefault(network.name, network).same_as(network):
            raise UserError(
                f"Two different networks are called {network.name}. Name them: qexp.compress(..., name='NAME') and "
                "qexp.compare({'NAME': network, ...}); or compress the network again if it has changed since."
            )
    return {name: network.module for name, network in found.items() if network.module is not None}


def call_text(function: str, arguments: Mapping[str, Any]) -> str:
    """What records say of a call, such as `qexp.compress(<Net>, 'pictures', method='static')`."""
    words = [
        _described(value) if name in ("network", "networks", "data") else f"{name}={_described(value)}"
        for name, value in arguments.items()
    ]
    return f"qexp.{function}({', '.join(words)})"


def _described(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_described, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {_described(each)}' for key, each in value.items())}}}"
    plain = value is None or isinstance(value, (str, bool, int, float))
    return repr(value) if plain else repr(str(value)) if isinstance(value, Path) else f"<{type(value).__name__}>"
