"""Images that a program holds are measured as they are, and whatever is wrong with them is said at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from qexp.data.base import ImageData
from qexp.data.opening import open_data
from qexp.data.parts import Parts
from qexp.inputs import pixels_of
from qexp.places import CONF
from qexp.types import UserError
from tests.data.support import every

RNG = np.random.default_rng(0)
LABELS = np.arange(40) % 4
PIXELS = RNG.integers(256, size=(40, 8, 10, 3), dtype=np.uint8)
FLOATS = torch.from_numpy(RNG.standard_normal((40, 3, 8, 10), dtype=np.float32))
Make = Callable[..., ImageData]


class Listed(Dataset[Any]):
    """Any items."""

    def __init__(self, items: list[Any]):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


@pytest.fixture(scope="module")
def config() -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("compress", ["model=resnet8", "data=_given", "data.name=mine"])


@pytest.fixture
def make(config: DictConfig, tmp_path: Any) -> Make:
    def make(given: Any, **options: Any) -> ImageData:
        own = OmegaConf.merge(config, {"data": {"cache_dir": str(tmp_path), **options}})
        assert isinstance(own, DictConfig)
        return open_data(own, parts=Parts(given))

    return make


def parts(images: Any, labels: Any = LABELS) -> dict[str, Any]:
    return {"train": (images[:24], labels[:24]), "test": (images[24:], labels[24:])}


@pytest.mark.parametrize("form", ["arrays", "channels first", "images", "subset of a list"])
def test_pixels_are_prepared_and_keep_their_size(make: Make, form: str) -> None:
    images: Any = {
        "arrays": PIXELS,
        "channels first": torch.from_numpy(PIXELS).permute(0, 3, 1, 2),
        "images": None, "subset of a list": None,
    }[form]  # fmt: skip
    if images is None:
        items: Any = [(Image.fromarray(image), int(label)) for image, label in zip(PIXELS, LABELS, strict=True)]
        given = {"train": Listed(items[:24]), "test": items[24:]}
    else:
        given = parts(images)
    data = make(given)
    assert data.spec.input_shape == (3, 8, 10)
    assert np.array_equal(every(data, "test"), PIXELS[24:]) and data.splits["test"].labels.tolist() == [*LABELS[24:]]
    assert np.allclose(data.spec.preprocessing.mean, PIXELS[data.train_indices].mean((0, 1, 2)) / 255, atol=1e-6)


def test_tensors_are_what_the_network_takes_to_the_last_bit(make: Make) -> None:
    data = make(
        {"train": TensorDataset(FLOATS[:24], torch.from_numpy(LABELS[:24])), "test": (FLOATS[24:], LABELS[24:])}
    )
    x = data.normalise(torch.from_numpy(every(data, "test")))
    assert torch.equal(x, FLOATS[24:]) and torch.equal(data.calibration()[:], FLOATS[data.train_indices])
    assert data.spec.preprocessing.steps == "as the dataset gives them"
    assert np.array_equal(pixels_of(FLOATS[3], data.spec.preprocessing), FLOATS[3].permute(1, 2, 0))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="nothing says how an image becomes one. Give tensors"):
        pixels_of(Image.fromarray(PIXELS[0]), data.spec.preprocessing)


def test_tensors_may_have_any_number_of_channels(make: Make) -> None:
    assert make(parts(torch.cat([FLOATS, FLOATS[:, :1]], 1))).spec.input_shape == (4, 8, 10)


def test_of_one_dataset_a_fixed_fifth_of_each_class_is_tested_on(make: Make) -> None:
    data = make((PIXELS, LABELS))
    labels = data.splits["test"].labels
    assert np.bincount(labels).tolist() == [2, 2, 2, 2]
    assert len(data.splits["train"].labels) == 32 and "fixed fifth" in data.notes()["test part"]
    trained = {image.tobytes() for image in every(data, "train")}
    assert not trained & {image.tobytes() for image in every(data, "test")}


def test_unlabelled_images_calibrate(make: Make) -> None:
    data = make({"calibration": PIXELS[:24], "test": (PIXELS[24:], LABELS[24:])})
    assert len(data.calibration()) == 24 and data.spec.num_classes == 4


def test_a_network_may_know_more_classes_than_occur(make: Make) -> None:
    assert make(parts(PIXELS), num_classes=10).spec.class_names == tuple("0123456789")
    assert make({**parts(PIXELS), "class_names": "abcd"}).spec.class_names == ("a", "b", "c", "d")
    with pytest.raises(UserError, match="num_classes is 3, but mine has 4 classes"):
        make(parts(PIXELS), num_classes=3)
    with pytest.raises(UserError, match="There are 3 class_names, but 4 classes"):
        make({**parts(PIXELS), "class_names": "abc"})


def changed(place: tuple[int, ...], value: int = 7) -> np.ndarray:
    images = PIXELS.copy()
    images[place] ^= value
    return images


@pytest.mark.parametrize("place", [(0, 0, 0, 0), (23, 7, 9, 2), (39, 4, 4, 1)], ids=["first", "training", "test"])
def test_another_pixel_is_another_dataset(make: Make, place: tuple[int, ...]) -> None:
    assert make(parts(changed(place))).spec.digest != make(parts(PIXELS)).spec.digest
    assert make(parts(PIXELS.copy())).spec.digest == make(parts(PIXELS)).spec.digest


def test_other_labels_names_and_sizes_are_another_dataset(make: Make) -> None:
    others = [
        make(parts(PIXELS, (LABELS + 1) % 4)), make(parts(PIXELS), num_classes=10), make(parts(PIXELS), image_size=8),
        make(parts(PIXELS)),
    ]  # fmt: skip
    assert len({data.spec.digest for data in others}) == 4


def test_what_a_transform_changes_is_another_dataset(make: Make) -> None:
    assert make(parts(FLOATS * 1.001)).spec.digest != make(parts(FLOATS)).spec.digest


def generator() -> Iterator[Any]:
    yield from zip(PIXELS, LABELS, strict=True)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return generator()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (generator(), "data is a generator, which gives each image once and then ends.* Give list"),
        ({"train": Stream(), "test": (PIXELS, LABELS)}, "is a Stream, which gives each image once"),
        (DataLoader(TensorDataset(FLOATS)), "is a DataLoader. Give its dataset, loader.dataset"),
        (PIXELS, r"has images without classes. Accuracy needs classes: give \(images, labels\)"),
        (Listed([Image.fromarray(PIXELS[0])]), r"Item 0 of data is a Image, and not \(image, class\)"),
        (TensorDataset(FLOATS), r"and not \(image, class\)"),
        ((PIXELS, LABELS[:7]), "has 40 images and 7 labels"),
        (
            (PIXELS, np.eye(4)[LABELS]),
            "the shape .40, 4.; give the number of each image's class, such as",
        ),
        ((PIXELS, LABELS / 2), "are of the type float64"),
        ({"test": (PIXELS, LABELS)}, "data has the parts test. Give 'test', and 'train' or 'calibration' beside it"),
        ({"trian": (PIXELS, LABELS), "test": (PIXELS, LABELS)}, "a part 'trian'. did you mean 'train'"),
        ([], "data is empty"),
        (3, "data is a int, which has no __getitem__"),
    ],
)
def test_what_cannot_be_data_is_refused(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Parts(given)


def spoilt(place: int, image: torch.Tensor) -> dict[str, Any]:
    items: list[Any] = [(each, int(label)) for each, label in zip(FLOATS, LABELS, strict=True)]
    items[place] = (image, items[place][1])
    return {"train": Listed(items[:24]), "test": Listed(items[24:])}


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (parts(torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float()), {}, "look like pixels that were not scaled"),
        ({"train": (FLOATS, LABELS), "test": (FLOATS / 20, LABELS)}, {}, "Prepare both in the same way"),
        (parts(torch.from_numpy(PIXELS / 255.0)), {}, r"which are taken for x\[C,H,W\]"),
        (spoilt(3, FLOATS[3, :, :4]), {}, r"Item 3 of the training images has the shape \(3, 4, 10\), and the first"),
        (spoilt(30, FLOATS[3] * torch.nan), {}, "Item 6 of the test images has values that are not finite"),
        (spoilt(30, torch.from_numpy(PIXELS[0])), {}, "Item 6 of the test images is no tensor of floats"),
        (parts(FLOATS), {"mean": 0.5, "image_size": 8}, "taken as they are, but image_size, mean would prepare"),
        ({"train": (PIXELS, LABELS), "test": (PIXELS[:, :6], LABELS)}, {}, "6x10 pixels, and the first image 8x10"),
        ({"train": (PIXELS, LABELS), "test": (PIXELS, LABELS - 1)}, {}, "has an image of the class -1"),
    ],
)  # fmt: skip
def test_images_that_do_not_fit_are_refused(make: Make, given: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(given, **options)


def test_random_transforms_are_refused(make: Make) -> None:
    class Noisy(Listed):
        def __getitem__(self, index: int) -> Any:
            image, label = self.items[index]
            return image + torch.rand(1), label

    items = [(each, int(label)) for each, label in zip(FLOATS, LABELS, strict=True)]
    data = make({"train": Noisy(items), "test": Listed(items)})
    with pytest.raises(UserError, match="is another image each time that it is read"):
        data.calibration()
