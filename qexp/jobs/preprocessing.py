"""Finds out how a network wants its images prepared, and puts that into the config where the user has not said it."""

from __future__ import annotations

from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from qexp.data.opening import name_of
from qexp.data.options import size_of
from qexp.model.baseline import Baseline, find_baseline
from qexp.model.pretrained import wanted
from qexp.types import AS_GIVEN, Preprocessing, UserError


def adopt_preprocessing(config: DictConfig, trains: bool = False) -> None:
    """Put what the network says of its images into `config.data`, except for what was given on the command line.

    A baseline says how its images were prepared, and pretrained weights of a library how their publisher did it.

    Args:
        config: Config of the job.
        trains: Whether the network is to be trained anew, so that it does not matter how an older one was trained.

    Raises:
        UserError: `data.preprocess` is `model`, and nothing says how images are prepared.
    """
    if config.data.preprocess == "data":
        return
    says = said_by_network(config, trains)
    if says is not None and says.transform == AS_GIVEN:
        return  # the dataset gives what the network takes
    if says is None:
        if config.data.preprocess == "model":
            raise UserError(
                f"data.preprocess=model: nothing says how images of {config.model.id} are prepared; only baselines of "
                "train.py and pretrained weights of torchvision and timm do. Give data.resize, data.mean, ... yourself."
            )
        return
    given = given_options()
    if "image_size" in given:
        says = of_size(says, size_of(config.data.image_size))
    for option, value in options_of(says).items():
        if option not in given:
            config.data[option] = value


def said_by_network(config: DictConfig, trains: bool) -> Preprocessing | None:
    """How the images of a config's network are prepared, or None if nothing says it."""
    checkpoint = "auto" if trains else config.checkpoint
    if checkpoint != "auto":
        return Baseline.read(Path(checkpoint)).data.preprocessing if Path(checkpoint).is_dir() else None
    if not trains and (config.train_missing is True or not wanted(config.model)):
        name = config.data.name or name_of(config.data)  # images of a program always have a name
        found = find_baseline(Path(config.outputs) / "baselines", config.model.id, name, config.seed)
        if found:
            return found.data.preprocessing
    return published(config.model) if wanted(config.model) else None


def of_size(how: Preprocessing, size: tuple[int, int]) -> Preprocessing:
    """The same preprocessing for images of another size, of which the same share is cropped."""
    if how.resize_to is None:
        return replace(how, size=size)
    return replace(how, size=size, resize_to=max(*size, round(how.resize_to * min(size) / min(how.size))))


def published(model: DictConfig) -> Preprocessing | None:
    """How the publisher of a network's pretrained weights prepares images, or None if its library does not say."""
    if model.get("_target_") is None:
        return None
    module = import_module(str(model._target_).rpartition(".")[0])
    says = getattr(module, "preprocessing", None)
    return says(model.name, model.in_channels) if says else None


def options_of(how: Preprocessing) -> dict[str, Any]:
    """The options of `data` that ask for a preprocessing."""
    values = asdict(how)
    height, width = values.pop("size")
    values["image_size"] = height if height == width else [height, width]
    values["transform"] = values["transform"] or None
    return {name: [*value] if isinstance(value, tuple) else value for name, value in values.items()}


def given_options() -> set[str]:
    """Options of `data` that were given on the command line."""
    if not HydraConfig.initialized():
        return set()
    words = [override.lstrip("+").partition("=")[0] for override in HydraConfig.get().overrides.task]
    return {word.split(".")[1] for word in words if word.startswith("data.") and word.count(".")}
