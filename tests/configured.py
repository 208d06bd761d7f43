"""Methods, engines, measures, datasets and networks with the options that their yaml files in conf/ give.

Options are given by name. They take the place of those in the yaml, and of a nested node only those that are given:
`method("prune", sparsity=0.8, recipe={"epochs": 0})`.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from qexp.places import CONF

if TYPE_CHECKING:
    from qexp.data.random import RandomData


@functools.cache
def composed(*overrides: str) -> DictConfig:
    """The config of compress.py with these overrides. Nobody may change it, as it is composed once for all tests."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("compress", ["model=resnet8", "data=random", "trainer=cpu", *overrides])


def made(node: Any, options: dict[str, Any]) -> Any:
    """What a node describes. Errors: the constructor's own, which Hydra wraps."""
    try:
        return instantiate(node, **options)
    except InstantiationException as error:
        raise error.__cause__ or error from error


def method(name: str, /, **options: Any) -> Any:
    return made(composed(f"method={name}").method, options)


def torchscript(name: str, /, **options: Any) -> Any:
    """The counterpart of the method for engines that run TorchScript."""
    return made(composed(f"method={name}").method.torchscript, options)


def engine(name: str, /, **options: Any) -> Any:
    return made(engine_node(name), options)


@functools.cache
def engine_node(name: str) -> Any:
    """What the file says is all that there is of one engine, so nothing has to be composed for it."""
    return OmegaConf.load(CONF / "engine" / f"{name}.yaml")


def measure(name: str, /, **options: Any) -> Any:
    return made(composed().measure[name], options)


def data(name: str, /, **options: Any) -> Any:
    """A dataset that is not opened yet. It caches below `cache_dir`, which has to be given."""
    return made(composed(f"data={name}").data, options)


def network(name: str, /, **options: Any) -> Any:
    """A network in training mode, by default for 10 classes of colour images."""
    node = {key: value for key, value in composed(f"model={name}").model.items() if key != "id"}
    return made(node, options)


def tracking(name: str, /, **options: Any) -> Any:
    return made(composed(f"tracking={name}").tracking, options)


def small_network() -> Any:
    """A small residual network with batch norms that do something, in eval mode. It is the same one each time."""
    import torch

    torch.manual_seed(0)
    made = network("resnet8", blocks=[1, 1], widths=[8, 16])
    with torch.no_grad():
        made.train()
        for _ in range(3):
            made(torch.randn(16, 3, 16, 16) * 2 + 0.5)
    return made.eval()


def pretend_data(cache: Path) -> RandomData:
    """64 pretend images of 3x16x16 in 10 classes, opened."""
    images: RandomData = data(
        "random", images=64, num_classes=10, name="random", image_size=16, channels=3, cache_dir=str(cache),
        calibration_images=32,
    )  # fmt: skip
    images.open()
    return images
