"""Objects of a Python program that stand in for nodes of the config: networks for `model`, images for `data`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from omegaconf import DictConfig
from torch import nn
from torch.export import ExportedProgram

from qexp.data.base import ImageData
from qexp.data.opening import open_data
from qexp.data.parts import Parts
from qexp.method.graph import trace
from qexp.model.base import identity_of, know_by
from qexp.model.outputs import network_for
from qexp.model.pretrained import tensors_digest
from qexp.types import DataSpec, UserError, digest


@dataclass(frozen=True)
class Given:
    """What a Python program gave. Whatever it did not give is made from the config.

    Attributes:
        networks: Networks by the names that `model.id` calls them by, as `qexp.model.given.taken` gives them.
        images: The images, or None.
        call: The call of the program, for records. Empty on the command line.
        expected: Digests of the images that there may be. Empty: any.
        known: What was found out about the networks, so that the jobs of one call find it out once.
    """

    networks: Mapping[str, nn.Module] = field(default_factory=dict)
    images: Parts | None = None
    call: str = ""
    expected: frozenset[str] = frozenset()
    known: dict[str, str] = field(default_factory=dict)

    def open(self, config: DictConfig) -> ImageData:
        """Open the images of a job.

        Raises:
            UserError: They are others than expected; or what `open_data` says.
        """
        data = open_data(config) if self.images is None else open_data(config, parts=self.images)
        if self.images is not None:
            channels, *size = data.spec.input_shape
            config.data.channels, config.data.image_size = channels, size
        if self.expected and data.spec.digest not in self.expected:
            raise UserError(
                f"These images of {data.name}, or the size to which they are brought, are not those that the network "
                "was compressed with. Compress it with these, or leave out data and the options of the images."
            )
        return data

    def has(self, model: DictConfig) -> bool:
        """Whether an object stands in for the `model` node."""
        return "_target_" not in model.keys()  # noqa: SIM118  (a key that is not set yet counts as absent)

    def network(self, model: DictConfig, data: DataSpec) -> nn.Module:
        """Make the network of a `model` node, which returns the logits of the data.

        Raises:
            UserError: There is no object for it; or what `network_for` says.
        """
        if not self.has(model):
            return network_for(model, data)
        if model.id not in self.networks:
            raise UserError("model=_given stands for a network of a Python program. Give model=NAME or model._target_.")
        return network_for(model, data, copy.deepcopy(self.networks[model.id]))

    def identity(self, model: DictConfig, network: nn.Module, data: ImageData) -> dict[str, str]:
        """Tell and write down which network this is, by its graph and weights, if an object stands in for it.

        Args:
            model: Config of the model.
            network: The network in eval mode with its weights.
            data: The images that it is for.

        Raises:
            UserError: The network cannot be traced.
        """
        if not self.has(model):
            return {}
        found = {"graph": self._digest_of(model, network, data, "eval")}
        know_by(network, {**identity_of(network), **found})
        return found

    def training_identity(self, model: DictConfig, network: nn.Module, data: ImageData) -> dict[str, str]:
        """Tell and write down what the network computes while it is trained, which its graph does not show.

        Arguments are those of `identity`.

        Raises:
            UserError: The network cannot be traced in training mode.
        """
        if not self.has(model):
            return {}
        try:
            found = {"training_graph": self._digest_of(model, copy.deepcopy(network).train(), data, "train")}
        except UserError as error:
            raise UserError(
                f"What {model.id} computes in training mode cannot be told, so that its result could not be found "
                f"again: {error} Training it needs a class: `model._target_=MODULE.CLASS` on the command line."
            ) from error
        know_by(network, {**identity_of(network), **found})
        return found

    def _digest_of(self, model: DictConfig, network: nn.Module, data: ImageData, mode: str) -> str:
        where = digest([model.id, str(model.output), data.spec.to_json(), tensors_digest(network.state_dict()), mode])
        if where not in self.known:
            # Some methods look at modules, of which a graph shows only what they compute.
            modules = [[path, f"{type(m).__module__}.{type(m).__qualname__}"] for path, m in network.named_modules()]
            self.known[where] = digest([graph_digest(trace(network, data)), modules[1:]])
        return self.known[where]


NOTHING = Given()


def graph_digest(program: ExportedProgram) -> str:
    """Digest of all that a traced network computes: its operations, its weights, its buffers and constants."""
    constants = {name: value for name, value in program.constants.items() if isinstance(value, torch.Tensor)}
    weights = tensors_digest({**program.state_dict, **constants})
    return digest([str(program.graph), str(program.graph_signature), weights])
