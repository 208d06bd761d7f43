"""Builds networks from their configs, and loads weights into them."""

from __future__ import annotations

import inspect
import os
import pickle
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from qexp.types import DataSpec, UserError, nearest

OURS = ("id", "output")  # keys of a model's config that are no arguments of the network
IMAGENET_HINT = (
    "The classes are named by WordNet ids: with data.classes=imagenet they are found among ImageNet's 1,000 logits."
)


def build_network(config: DictConfig) -> nn.Module:
    """Build the network of a `model` config by calling its `_target_` with its other keys.

    The `_target_` may be in the current folder. The key `id` only names the network, and `output` is for
    qexp.model.outputs.

    Raises:
        UserError: The `_target_` is missing, cannot be imported, lacks arguments or does not take those that are given,
            fails, or returns something other than a module.
    """
    missing = [str(k) for k, v in OmegaConf.to_container(config).items() if v == "???"]  # type: ignore[union-attr]
    if "_target_" in missing:
        raise UserError("No model was chosen. Give model=NAME (a file of conf/model/) or model._target_=my.module.Net.")
    if missing:
        raise UserError(
            f"The model lacks {', '.join(missing)}. Give {' '.join(f'model.{key}=VALUE' for key in missing)}."
        )
    factory = _locate(config._target_)
    arguments = _without_defaults(config, factory)
    _check_arguments(config._target_, factory, arguments)
    try:
        network = instantiate(arguments, _convert_="all")
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise cause from error
        raise UserError(f"Cannot build the model {config.id}: {cause}") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"model._target_={config._target_} gave a {type(network).__name__}, not a torch.nn.Module.")
    return network


def _without_defaults(config: DictConfig, factory: Callable[..., Any]) -> dict[str, Any]:
    """The arguments of a model, without those that are the data's own (`${data...}`) and that it does not take.

    Whoever brings a network need not leave out what only the default of the config gave.
    """
    written: dict[Any, Any] = OmegaConf.to_container(config, resolve=False)  # type: ignore[assignment]
    resolved: dict[Any, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    taken = _parameters(factory)
    data = {k for k, v in written.items() if isinstance(v, str) and v.startswith("${data.")}
    return {str(k): v for k, v in resolved.items() if k not in OURS and (taken is None or k not in data or k in taken)}


def _parameters(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    """The parameters of a callable by name, or None if it takes any or does not tell."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # some built-in callables have no signature, and calling them will tell
        return None
    any_name = any(p.kind == inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return None if any_name else parameters


def _locate(target: str) -> Any:
    """Import the class or function with this dotted name, which may be in the current folder.

    Raises:
        UserError: It does not exist. The message lists the names that are most like it.
    """
    if not {"", os.getcwd()} & set(sys.path):  # `python path/to/train.py` puts only that script's folder there
        sys.path.append(os.getcwd())
    try:
        return get_object(target)
    except Exception as error:
        folder, _, name = target.rpartition(".")
        module = _import(target, folder) if folder else None
        if module is None:
            raise UserError(
                f"model._target_={target} is no dotted name of a class or function, such as my.module.Net."
            ) from error
        known = (n for n, value in vars(module).items() if callable(value) and not n.startswith("_"))
        raise UserError(f"model._target_={target}: {folder} has no {name!r}: {nearest(name, known)}") from error


def _import(target: str, name: str) -> Any:
    """Import the module `name`.

    Raises:
        UserError: It cannot be imported. If it does not exist, the message names the first part of it that is missing
            and what is there instead.
    """
    try:
        return import_module(name)
    except Exception as error:
        absent = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
        if not (name + ".").startswith(absent + "."):  # the module exists, but something that it imports or does failed
            raise UserError(
                f"model._target_={target}: importing {name} failed: {type(error).__name__}: {error}"
            ) from error
        parent = absent.rpartition(".")[0]
        places = getattr(sys.modules.get(parent), "__path__", None) if parent else [os.getcwd()]
        known = (module.name for module in pkgutil.iter_modules(places))
        where = parent or f"the current folder ({os.getcwd()}) and the installed packages"
        raise UserError(
            f"model._target_={target}: there is no module {absent!r} in {where}: "
            f"{nearest(absent.rpartition('.')[2], known)}"
        ) from error


def _check_arguments(target: str, factory: Callable[..., Any], arguments: dict[str, Any]) -> None:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # some built-in callables have no signature, and calling them will tell
        return
    kinds = [p.kind for p in parameters.values()]
    given = [name for name in arguments if not (name.startswith("_") and name.endswith("_"))]
    unknown = [] if inspect.Parameter.VAR_KEYWORD in kinds else [name for name in given if name not in parameters]
    if unknown:
        raise UserError(
            f"{target} takes no argument {unknown[0]!r} (leave it out with ~model.{unknown[0]}): "
            f"{nearest(unknown[0], parameters)}"
        )
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    needed = [n for n, p in parameters.items() if p.default is p.empty and p.kind in named and n not in given]
    if needed and "_args_" not in arguments:
        raise UserError(
            f"{target} needs the arguments {', '.join(needed)}. Give {' '.join(f'+model.{n}=VALUE' for n in needed)}."
        )


def bake(network: nn.Module) -> nn.Module:
    """Replace weights that are computed at each call by their values, in place.

    These are torch's parametrisations, of which weight norm and spectral norm are the best known, in their present and
    in their former form.

    Args:
        network: The network in eval mode, in which all of them are constant.

    Returns:
        The same network.
    """
    former: dict[type, Any] = {WeightNorm: nn.utils.remove_weight_norm, SpectralNorm: nn.utils.remove_spectral_norm}
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        for hook in list(module._forward_pre_hooks.values()):
            if type(hook) in former:
                former[type(hook)](module, getattr(hook, "name"))  # noqa: B009
    return network


def start_from(network: nn.Module, images: Callable[[], Tensor]) -> None:
    """Let those layers of a network take their initial weights from images that have a method `start_from_images`.

    Args:
        network: The network, with random weights.
        images: Gives some normalised training images x[N,C,H,W], if there are such layers.
    """
    layers: list[Any] = [module for module in network.modules() if hasattr(module, "start_from_images")]
    if layers:
        seen = images()
        for layer in layers:
            layer.start_from_images(seen)


def know_by(network: nn.Module, identity: dict[str, str]) -> None:
    """Write down in a network, and so in its copies, what identifies it where no importable code does.

    Args:
        network: A network that a program gave, which may be defined in a cell of a notebook.
        identity: Digests of what it computes.
    """
    network._qexp_identity = identity  # type: ignore[assignment]


def identity_of(network: nn.Module) -> dict[str, str]:
    """What `know_by` wrote down, or nothing if the code of its class identifies the network."""
    found: Any = getattr(network, "_qexp_identity", {})
    return found


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """A context in which a network is in eval mode. Afterwards, each of its modules is in the mode that it was in."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def check_logits(network: nn.Module, name: str, data: DataSpec) -> None:
    """Check that the network, before any logits are selected, maps images x[2,C,S,S] of the data to logits[2,K].

    Args:
        network: The network.
        name: Its name, for the message.
        data: The dataset, with images of size S, for a network of K logits.

    Raises:
        UserError: The network cannot take the images, or its output has another shape.
    """
    shape = "x".join(map(str, data.input_shape))
    try:
        with torch.no_grad(), evaluating(network):
            logits = network(torch.zeros(2, *data.input_shape))
    except Exception as error:
        raise UserError(
            f"The model {name} cannot take images of {shape} (C,H,W): {error}. Another data.image_size may do."
        ) from error
    given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    expected = (2, data.network_outputs)
    if given != expected:
        raise UserError(
            f"The model {name} gives {given} for 2 images of {shape}, but {data.name} has {expected[1]} classes: "
            f"it must give logits of shape {expected}. Build it for {expected[1]} classes, such as by "
            f"+model.ARGUMENT=${{data.num_classes}}, or choose the data that it was trained on."
            + (f" {IMAGENET_HINT}" if given == (2, 1000) and of_imagenet(data) else "")
        )


def of_imagenet(data: DataSpec) -> bool:
    """Whether the classes look like some of ImageNet's 1,000, and are not said to be: all are named by WordNet ids."""
    return data.num_classes < 1000 and all(re.fullmatch(r"n\d{8}", name) for name in data.class_names)


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read a state dict from a `.safetensors` file or a torch checkpoint, without unpickling code.

    A checkpoint may also hold the state dict under `state_dict`, `model` or `model_state_dict`.

    Raises:
        UserError: The file is missing, damaged or no state dict. The message names it and says what is wrong.
    """
    if not file.is_file():
        raise UserError(
            f"There is no checkpoint file {file}. Give checkpoint=auto, random, a folder of train.py or a file."
        )
    try:
        loaded: Any = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except pickle.UnpicklingError as error:
        raise UserError(
            f"The checkpoint {file} was not loaded: it is damaged, or holds Python objects, which can run code. "
            "Save only its state_dict(), with safetensors or torch.save."
        ) from error
    except Exception as error:  # both libraries raise all sorts of errors on damaged bytes
        why = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"The checkpoint {file} is truncated or no checkpoint: {why}") from error
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise UserError(f"The checkpoint {file} is not a state dict (names to tensors).")
    return loaded


def load_weights(network: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Load weights into the network, whichever wrapper they were saved from (see `_unwrapped`).

    Args:
        network: The network.
        weights: A state dict.
        source: Where the weights come from, for the message.

    Raises:
        UserError: The weights do not fit. The message lists missing, unexpected and misshapen entries.
    """
    own = network.state_dict()
    weights = _unwrapped(weights, own)
    # BatchNorm's step counter came late to PyTorch and plays no part in inference.
    missing = [k for k in own if k not in weights and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in weights if k not in own]
    shapes = {k: (tuple(weights[k].shape), tuple(own[k].shape)) for k in own if k in weights}
    misshapen = [f"{k} {theirs} instead of {ours}" for k, (theirs, ours) in shapes.items() if theirs != ours]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(problems.values()):
        listed = "\n".join(
            f"  {title} ({len(names)}): {shortened(names)}" for title, names in problems.items() if names
        )
        raise UserError(
            f"The weights in {source} do not fit this model:\n{listed}\n"
            "Choose the model and data they were trained with."
        )
    network.load_state_dict(weights, strict=False)


def _unwrapped(weights: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Strip the prefixes of DataParallel, Lightning and torch.compile until a name is one of the network's own."""
    for _ in range(4):
        prefix = next(
            (p for p in ("module.", "network.", "_orig_mod.") if all(name.startswith(p) for name in weights)), None
        )
        if prefix is None or weights.keys() & own.keys():
            break
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def shortened(names: list[str], most: int = 10) -> str:
    """The first of these names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
