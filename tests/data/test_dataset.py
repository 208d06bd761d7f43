"""Any dataset of torch or torchvision gives the pixels and classes that it gives by itself."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig
from PIL import Image
from torchvision.datasets import FakeData, ImageFolder

from qexp.data.dataset import DatasetData
from qexp.data.items import TWICE
from qexp.data.opening import open_data
from qexp.errors import explain
from qexp.places import CONF
from qexp.types import UserError
from tests import configured
from tests.data.support import every
from tests.data.toys import pixels

TOY = "tests.data.toys.Toy"
Make = Callable[..., DatasetData]


@pytest.fixture
def make(cache_dir: str) -> Make:
    """Toys of 8x8 pixels: 12 to train and 6 to test, with options of both datasets or of the data changed."""

    def make(toy: dict[str, Any] | None = None, **options: Any) -> DatasetData:
        given = {
            "train": {"_target_": TOY, **(toy or {})}, "test": {"_target_": TOY, "size": 6, **(toy or {})},
            "image_size": 8, "cache_dir": cache_dir, "augmentation": {"padding": 2}, "validation_share": 0.25,
        }  # fmt: skip
        return configured.data("dataset", **{**given, **options})

    return make


@pytest.fixture
def compose(tmp_path: Path) -> Iterator[Callable[..., DictConfig]]:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        given = ["model=resnet8", "data=dataset", f"outputs={tmp_path}/outputs", "data.image_size=8"]
        yield lambda *overrides: hydra.compose("train", [*given, *overrides])


def test_torchvisions_fake_data_from_the_command_line(compose: Callable[..., DictConfig]) -> None:
    whole = "{_target_: torchvision.datasets.FakeData, size: 64, image_size: [3, 8, 8]}"
    parts = ["_target_=torchvision.datasets.FakeData", "size=16", "image_size=[3,8,8]", "random_offset=64"]
    given = [f"{'+' * (number > 0)}data.test.{part}" for number, part in enumerate(parts)]
    config = compose(f"+data.train={whole}", *given)
    data = open_data(config)
    assert (config.data.name, config.model.num_classes, data.spec.num_classes) == ("FakeData", 10, 10)
    for part, own in (("train", FakeData(64, (3, 8, 8))), ("test", FakeData(16, (3, 8, 8), random_offset=64))):
        assert np.array_equal(every(data, part), np.stack([np.asarray(image) for image, _ in own]))
        assert data.splits[part].labels.tolist() == [int(label) for _, label in own]


def test_image_folder(make: Make, images_root: Path) -> None:
    nodes = {
        part: {"_target_": "torchvision.datasets.ImageFolder", "root": str(images_root / part)}
        for part in ("train", "test")
    }
    data = make(**nodes, name="pets")
    assert data.open().class_names == ("cat", "dog") and data.spec.name == "pets"
    own = ImageFolder(str(images_root / "test"))
    assert np.array_equal(every(data, "test"), np.stack([np.asarray(image) for image, _ in own]))
    assert data.splits["test"].labels.tolist() == own.targets


@pytest.mark.parametrize(
    "form", ["image", "array", "grey array", "channels first", "tensor", "tensor of one channel", "more"]
)
def test_forms_of_images(make: Make, form: str) -> None:
    data = make({"form": form})
    grey = form in ("grey array", "tensor of one channel")
    expected = [pixels(i)[..., :1].repeat(3, 2) if grey else pixels(i) for i in range(6)]
    assert np.array_equal(every(data, "test"), np.stack(expected))
    assert data.splits["test"].labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_images_are_prepared_as_pillow_does(make: Make) -> None:
    data = make(image_size=4, channels=1, augmentation={"padding": 1})
    image = Image.fromarray(pixels(5)).convert("L").resize((4, 4), Image.Resampling.BILINEAR)
    assert np.array_equal(every(data, "test")[5, ..., 0], np.asarray(image))


def test_a_function_of_the_user_prepares_arrays_too(make: Make) -> None:
    data = make({"form": "array"}, transform="tests.data.toys.to_float")
    assert np.allclose(every(data, "test")[4], pixels(4) / 127.5)


@pytest.mark.parametrize("keep", ["targets", "labels", "_labels"])
def test_kept_classes_are_not_asked_for(make: Make, keep: str) -> None:
    data = make({"keep": keep, "names": ["a", "b", "c"]})
    assert data.open().class_names == ("a", "b", "c")
    sampled = len(data.train_indices) + 2 * TWICE  # for mean and deviation
    assert [dataset.asked for dataset in data._datasets.values()] == [sampled, 0]
    other = make()
    other.open()
    assert [dataset.asked for dataset in other._datasets.values()] == [12 + sampled, 6]
    again = make()
    again.open()
    assert [dataset.asked for dataset in again._datasets.values()] == [0, 0], "once is enough"
    assert again.splits["train"].labels.tolist() == data.splits["train"].labels.tolist() == [i % 3 for i in range(12)]


def test_names_of_classes(make: Make, images_root: Path) -> None:
    assert make().open().class_names == ("0", "1", "2")
    assert make({"names": [("tench", "Tinca"), ("goldfish",), ("shark",)]}).open().class_names[0] == "tench"
    subset = {
        "_target_": "tests.data.toys.part_of_folder",
        "root": str(images_root / "train"),
        "indices": [0, 1, 11, 12],
    }
    data = make(train=subset, test=subset)
    assert data.open().class_names == ("cat", "dog") and data.splits["train"].labels.tolist() == [0, 0, 1, 1]


def test_classes_among_more_logits(make: Make, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("0 4\n1 2\n2 9\n")
    data = make(classes=str(tmp_path / "classes.txt"), among="own")
    assert data.open().logits == (2, 4, 9) and data.spec.network_outputs == 10
    assert data.splits["test"].labels.tolist() == [1, 0, 2, 1, 0, 2]


@pytest.mark.parametrize(
    "change",
    [{"size": 9}, {"form": "array"}, {"keep": "targets"}, {"names": ["a", "b", "c"]}],
    ids=["items", "argument", "classes", "names"],
)
def test_what_decides_the_digest(make: Make, change: dict[str, Any]) -> None:
    first = make().source_digest()
    assert make().source_digest() == first
    assert make(change).source_digest() != first


def test_arrays_count_whole_and_files_by_size_and_time(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "pixels.bin"
    file.write_bytes(b"one")

    def found() -> tuple[str, str]:
        data = make({"file": str(file)})
        return data.source_digest(), data.source_version()

    first = found()
    os.utime(file, ns=(1, 1))
    assert found()[0] == first[0] and found()[1] != first[1]
    file.write_bytes(b"three")
    assert found()[0] != first[0]

    def digest_with(array: np.ndarray) -> str:
        data = make()
        data._datasets["train"].pixels = array
        return data.source_digest()

    ones = np.ones(1000)
    changed = ones.copy()
    changed[500] = 2
    assert digest_with(ones) == digest_with(ones.copy()) != digest_with(changed)


def test_files_that_a_dataset_lists_count(make: Make, images_root: Path) -> None:
    node = {"_target_": "torchvision.datasets.ImageFolder", "root": str(images_root / "train")}

    def found() -> tuple[str, str]:
        data = make(train=node, test=node)
        return data.source_digest(), data.source_version()

    first, file = found(), images_root / "train/cat/000.png"
    content = file.read_bytes()
    file.write_bytes(content)
    os.utime(file, ns=(1, 1))
    assert found()[0] == first[0] and found()[1] != first[1]
    file.write_bytes(content + b"longer")
    assert found()[0] != first[0]


def test_the_code_of_a_dataset_is_in_the_version(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two modules of the same name, of which only one line differs."""
    versions = []
    for number, line in enumerate(("return index % 2", "return index % 2 + 0")):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / f"mine{number}.py").write_text(
            "import numpy as np\n\nclass Mine:\n    def __len__(self):\n        return 8\n\n"
            f"    def label(self, index):\n        {line}\n\n"
            "    def __getitem__(self, index):\n        return np.zeros((8, 8), np.uint8), self.label(index)\n"
        )
        monkeypatch.chdir(folder)
        node = {"_target_": f"mine{number}.Mine"}
        data = make(train=node, test=node)
        assert data.open().class_names == ("0", "1"), "it lies in the current folder"
        versions.append(data.source_version())
    assert versions[0] != versions[1]


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("float tensor", r"Item 0 of data\.test has pixels of the type float32\. .*leave out the dataset's transform"),
        ("16 bits", r"pixels of the type uint16"),
        ("two channels", r"pixels of the shape \(8, 8, 2\)"),
        ("five channels", r"pixels of the shape \(8, 8, 5\)"),
        ("noise", r"Item 0 of data\.test is another image each time .*Leave out the dataset's transform"),
        ("path", r"has a str in place of an image"),
        ("32 bits", r"Item 0 of data\.test cannot be prepared: its pixels are 32-bit"),
        ("wrong class", r"Item 0 of data\.test has the class 1, but the dataset's list of classes says 0"),
    ],
)
def test_images_that_cannot_be_prepared(make: Make, form: str, message: str) -> None:
    data = make(test={"_target_": TOY, "size": 6, "form": form, "keep": "targets"})
    data.open()
    with pytest.raises(UserError, match=message):
        every(data, "test")


@pytest.mark.parametrize(
    ("toy", "message"),
    [
        ({"form": "dict"}, r"Item 0 of data\.train is a dict, and not \(image, class\)"),
        ({"form": "alone"}, r"Item 0 of data\.train is a Image, and not"),
        ({"form": "name"}, r"Item 0 of data\.train has the class 'cat'; it must be a whole number"),
        ({"form": "share"}, r"has the class 0\.5; it must be"),
        ({"form": "one-hot"}, r"has the class array\(\[1, 0, 0\]\)"),
        ({"form": "negative"}, r"data\.train has an image of the class -1; classes are numbers from 0"),
        ({"form": "error"}, r"Item 0 of data\.train cannot be read: OSError: disk on fire"),
        ({"names": ["a", "b"]}, r"data\.train has an image of the class 2, but names only 2 classes"),
        ({"size": 0}, r"The dataset of data\.train is empty"),
        ({"colour": "red"}, r"Cannot make data\.train, tests\.data\.toys\.Toy: TypeError: .*'colour'"),
        ({"_target_": "tests.data.toys.Toi"}, r"Cannot make data\.train, tests\.data\.toys\.Toi: .*Toi"),
        (
            {"_target_": "builtins.object"},
            r"data\.train\._target_=builtins\.object gave a object, which is no map-style",
        ),
        ({"_target_": "tests.data.toys.Stream"}, r"gave a Stream, which is no map-style dataset: it needs __getitem__"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_datasets_that_do_not_fit(make: Make, toy: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(toy).open()


def test_parts_with_other_classes(make: Make) -> None:
    test = {"_target_": TOY, "names": ["c", "b", "a"]}
    with pytest.raises(UserError, match=r"classes of data\.train and data\.test differ: \('a', 'b', 'c'\) and \('c'"):
        make(train={"_target_": TOY, "names": ["a", "b", "c"]}, test=test).open()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"^data\.train\._target_ is not set\. Give data\.train\._target_=VALUE\."),
        ([f"data.train._target_={TOY}"], r"^data\.test\._target_ is not set"),
        (
            [f"data.train._target_={TOY}", "+data.train.size=???", f"data.test._target_={TOY}"],
            r"^data\.train\.size is not set",
        ),
        (
            ["data.train=null", f"data.test._target_={TOY}"],
            r"^data\.train is None\. Give data\.train\._target_=CLASS, such",
        ),
        (
            [f"data.{part}._target_=torchvision.datasets.CIFAR10" for part in ("train", "test")],
            r"^Cannot make data\.train, torchvision\.datasets\.CIFAR10: TypeError: .*'root'",
        ),
        (
            [f"data.train._target_={TOY}", f"data.test._target_={TOY}", "data.augmentation.padding=-1"],
            r"^data\.augmentation\.padding is -1",
        ),
    ],
)
def test_what_is_missing_on_the_command_line(
    compose: Callable[..., DictConfig], overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        open_data(compose(*overrides))


def test_a_node_given_whole_needs_a_plus(compose: Callable[..., DictConfig]) -> None:
    with pytest.raises(ConfigCompositionException) as raised:
        compose(f"data.train={{_target_: {TOY}, size: 6}}")
    message = "There is no data.train.size. To give data.train keys of its own, put + before it: +data.train={...}."
    assert explain(raised.value) == message


def test_files_that_are_nowhere_listed_are_not_seen(make: Make, tmp_path: Path) -> None:
    """The limit that the class's docstring states: another name makes it other data."""
    for index in range(6):
        Image.fromarray(pixels(index)).save(tmp_path / f"{index}.png")
    node = {"_target_": "tests.data.toys.Lazy", "root": str(tmp_path)}
    first = make(train=node, test=node)
    assert np.array_equal(every(first, "test")[0], pixels(0))
    shutil.copy(tmp_path / "1.png", tmp_path / "0.png")
    assert make(train=node, test=node).open().cache_name == first.spec.cache_name
    assert np.array_equal(every(make(train=node, test=node, name="new"), "test")[0], pixels(1))
