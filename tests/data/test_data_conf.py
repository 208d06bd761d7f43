"""Every yaml in conf/data makes a dataset, and what is missing or wrong on the command line ends in a message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import hydra
import pytest
from hydra.utils import get_class
from omegaconf import DictConfig

from qexp.data.base import ImageData
from qexp.data.opening import _build, open_data
from qexp.places import CONF
from qexp.types import UserError

NEEDED = {"dataset": [f"data.{part}._target_=torchvision.datasets.FakeData" for part in ("train", "test")]}
NAMES = sorted(file.stem for file in (CONF / "data").glob("[!_]*.yaml"))
Compose = Callable[..., DictConfig]


@pytest.fixture
def compose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Compose]:
    """The training config with overrides; no QEXP_DATA, outputs below tmp_path."""
    monkeypatch.delenv("QEXP_DATA", raising=False)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *overrides: hydra.compose("train", ["model=resnet8", f"outputs={tmp_path}/outputs", *overrides])


def test_there_are_yamls() -> None:
    assert {"cifar10", "cifar100", "dataset", "digits", "folder", "mnist", "random"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_yaml_makes_a_dataset(
    name: str, compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QEXP_DATA", str(tmp_path))
    config = compose(f"data={name}", *NEEDED.get(name, []))
    assert issubclass(get_class(config.data._target_), ImageData)
    data = _build(config.data)
    assert data.name and data.seed == config.seed
    assert data.cache_dir == tmp_path / "outputs/cache"


def test_opened_data_tell_the_config_what_they_found(compose: Compose, images_root: Path) -> None:
    config = compose("data=folder", f"data.root={images_root}")
    data = open_data(config)
    assert (config.data.name, config.data.num_classes, config.model.num_classes) == ("pets", 2, 2)
    assert data.spec.class_names == ("cat", "dog")
    config = compose("data=digits")
    assert open_data(config).spec.num_classes == config.model.num_classes == 10


def test_a_network_whose_logits_are_selected_is_built_with_all_of_them(compose: Compose, images_root: Path) -> None:
    (images_root / "classes.txt").write_text("cat 281\ndog 207\n")
    rows = [f"train/{kind}/00{number},{kind}" for kind in ("cat", "dog") for number in range(10)]
    (images_root / "labels.csv").write_text("\n".join(["file,class", *rows]))
    given = [f"data.root={images_root}", f"data.classes={images_root}/classes.txt", "data.among=own"]
    for further in ([], ["data.labels=labels.csv"]):
        config = compose("data=folder", *given, *further, "data.num_classes=1000")
        data = open_data(config)
        assert (config.data.num_classes, config.model.num_classes, data.spec.num_classes) == (1000, 1000, 2)
        assert data.spec.logits == (207, 281)
        assert open_data(config).spec == data.spec, "the config may be used again"


def test_no_root(compose: Compose, images_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=r"data\.root is not set\. Give data\.root=.* or set the environment variable QEXP_DATA"
    ):
        open_data(compose("data=folder"))
    monkeypatch.setenv("QEXP_DATA", str(images_root))
    assert open_data(compose("data=folder")).spec.name == "pets"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=digits", "data.image_size=0"], r"^data\.image_size is 0"),
        (["data=digits", "data.image_size=big"], r"^data\.image_size is 'big'; give a side in pixels"),
        (["data=digits", "data.augmentation.padding=-1"], r"^data\.augmentation\.padding is -1"),
        (["data=digits", "data.augmentation.cutout=1.5"], r"^data\.augmentation\.cutout is 1\.5"),
        (["data=digits", "data.name=???"], r"^data\.name is not set\. Give data\.name=VALUE\.$"),
        (["data=digits", "+data.colour=red"], r"colour"),
        (["data=random", "data.num_classes=null"], r"^data\.num_classes is None"),
        (["data=folder", "data.root=/no/such/folder"], r"^There is no folder /no/such/folder/train"),
        (["data=cifar10", "data.classes=11"], r"^data\.classes is 11"),
        (["data=digits", "data._target_=qexp.data.nowhere.Data"], r"data\._target_=qexp\.data\.nowhere\.Data"),
        (["data=digits", "data._target_=builtins.dict"], r"gave a dict"),
    ],
)
def test_wrong_options(compose: Compose, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_data(compose(*overrides))
