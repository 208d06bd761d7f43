"""The base of methods whose result is again an fp32 network, so that another method can go on from it."""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from qexp.artifact import EngineSpec
from qexp.data.base import ImageData
from qexp.method.base import Compressed, Method
from qexp.method.fine_tuning import FineTuning
from qexp.method.graph import save_fp32
from qexp.method.prune.factors import FIRST, SECOND, factored
from qexp.model.base import load_weights, read_weights
from qexp.types import UserError

PRUNABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
FACTORS = (f"{FIRST}.weight", f"{SECOND}.weight", f"{SECOND}.bias")
WEIGHTS_FILE = "weights.safetensors"


class NetworkMethod(Method):
    """A method that changes an fp32 network, and fine-tunes it by the recipe either afterwards or at the same time."""

    supported_bits = (32,)

    trains = True

    def __init__(self, recipe: FineTuning, coded: bool):
        super().__init__(bits=32)
        self.recipe, self.coded = recipe, coded

    def label(self, engine_spec: EngineSpec) -> str:
        return self.name

    @property
    def notes(self) -> dict[str, str]:
        """What records say about the artifact, by name."""
        if not self.coded:
            return {}
        return {
            "coded": "zeros and shared values make the file small, not the network fast: it is decoded when loaded, "
            "and computed dense"
        }

    @abstractmethod
    def transform(self, network: nn.Module, data: ImageData, folder: Path) -> nn.Module:
        """Make a new fp32 network in eval mode, which differs only in its weights and in their shapes.

        Args:
            network: The network to start from, which is not changed.
            data: The images to train on.
            folder: The artifact's folder while it is made, for files that people read. What must outlive a kill lies in
                the folder of `FineTuning.session`.
        """

    def apply(self, network: nn.Module, data: ImageData, engine_spec: EngineSpec, folder: Path) -> Compressed:
        result = self.transform(network, data, folder)
        files = tuple(sorted(file.name for file in folder.iterdir()))
        saved = save_network(result, network, data, folder, self.coded)
        return replace(saved, files=(*saved.files, *files), notes=self.notes)


def weights_of(network: nn.Module, first_last: bool = True) -> dict[str, Tensor]:
    """The weight of each convolution and linear layer, by module path.

    Args:
        network: The network, whose own tensors are returned.
        first_last: Whether the first and the last layer are included.

    Raises:
        UserError: The network has no such layer.
    """
    found = {name: module.weight for name, module in network.named_modules() if isinstance(module, PRUNABLE)}
    chosen = found if first_last else dict(list(found.items())[1:-1])
    if not chosen:
        raise UserError(
            f"{type(network).__name__} has no module nn.Conv1d, Conv2d, Conv3d or Linear whose weight could be changed."
        )
    return chosen


def save_network(
    result: nn.Module, network: nn.Module, data: ImageData, folder: Path, coded: bool = False
) -> Compressed:
    """Write the graph of a network, and the weights from which `restore` makes the network again.

    Args:
        result: The network to write.
        network: The network that it was made from.
        data: The images that both are for.
        folder: The folder to write to.
        coded: Whether to write the graph in the form of qexp.coded_file.

    Raises:
        UserError: What `restore` makes from the weights computes something else.
    """
    save_weights(result, folder / WEIGHTS_FILE)
    images = data.calibration()[:8]
    with torch.no_grad():
        if not torch.equal(restore(network, folder / WEIGHTS_FILE)(images), result(images)):
            raise UserError(
                f"{type(network).__name__} computes something else with the shapes of these weights: it cannot be "
                "pruned."
            )
    layers = save_fp32(result, data, folder / "model.pt2", coded)
    return Compressed("model.pt2", layers, files=(WEIGHTS_FILE,), network=result)


def save_weights(network: nn.Module, file: Path) -> None:
    # Copies, because safetensors refuses tensors that share memory, as tied weights do.
    save_file(
        {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in network.state_dict().items()}, file
    )


def restore(network: nn.Module, file: Path) -> nn.Module:
    """Copy a network in eval mode, with the weights from a file. Its modules take the shapes of these weights.

    Where the file has the weights of two layers in the place of one (factors.py), so has the copy.

    Raises:
        UserError: The names of the weights are not those of the network, or the file is damaged.
    """
    weights, made = read_weights(file), copy.deepcopy(network).eval()
    for path, module in list(made.named_modules()):
        first, second, bias = (weights.get(f"{path}.{name}") for name in FACTORS)
        if first is not None and second is not None and isinstance(module, (nn.Conv2d, nn.Linear)):
            made.set_submodule(path, factored(module, first, second, bias).eval())
    for path, module in made.named_modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                stored = weights.get(f"{path}.{name}".lstrip("."))
                if tensor is not None and stored is not None and stored.shape != tensor.shape:
                    own[name] = _shaped_like(tensor, stored)
        _note_shapes(module)
    load_weights(made, weights, str(file))
    return made


def _shaped_like(tensor: Tensor, stored: Tensor) -> Tensor:
    empty = torch.empty_like(stored, dtype=tensor.dtype)
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _note_shapes(module: nn.Module) -> None:
    """Set the numbers of channels that a module keeps beside its weights to those of the weights."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        if module.groups == module.in_channels > 1:  # depthwise: a channel that is removed takes its group along
            per_group = module.out_channels // module.groups
            module.groups = module.weight.shape[0] // per_group
        module.out_channels, module.in_channels = module.weight.shape[0], module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
        module.num_features = len(module.running_mean)
    elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm) and module.affine:
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
