"""Makes and opens the dataset that a config describes."""

from __future__ import annotations

import copy
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue

from qexp.data.base import ImageData
from qexp.types import UserError


def open_data(config: DictConfig, **objects: Any) -> ImageData:
    """Make and open the dataset of `config.data`.

    Its name and the number of the network's logits are put into the config, where the model finds them.

    Args:
        config: Config of the job.
        **objects: Arguments of the dataset that a config cannot hold.

    Raises:
        UserError: Options are missing or wrong, or images are missing, corrupt or contradictory.
    """
    data = _build(config.data, **objects)
    spec = data.open()
    config.data.name, config.data.num_classes = spec.name, spec.network_outputs
    return data


def name_of(config: DictConfig) -> str:
    """Name of the dataset that a `data` config describes, known without opening it. Errors are those of `open_data`."""
    return _build(config).name


def _build(config: DictConfig, **objects: Any) -> ImageData:
    if isinstance(config.transform, DictConfig):  # data.transform._target_, to be called later
        config = copy.deepcopy(config)
        config.transform = config.transform._target_
    try:
        data = instantiate(config, **objects)
    except MissingMandatoryValue as error:
        key = str(error.full_key)
        way = "FOLDER or set the environment variable QEXP_DATA" if key == "data.root" else "VALUE"
        raise UserError(f"{key} is not set. Give {key}={way}.") from error
    except Exception as error:
        cause = error.__cause__ or error  # Hydra wraps what a constructor raises
        if isinstance(cause, UserError):
            raise cause from error
        raise UserError(f"Cannot make the dataset of data._target_={config.get('_target_')}: {cause}") from error
    if not isinstance(data, ImageData):
        raise UserError(
            f"data._target_={config.get('_target_')} gave a {type(data).__name__}, not a qexp.data.base.ImageData."
        )
    return data
