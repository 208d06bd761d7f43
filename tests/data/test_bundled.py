"""Data that need no files: scikit-learn's digits and pretend images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from qexp.data.digits import DigitsData
from qexp.data.random import RandomData
from qexp.types import UserError
from tests import configured
from tests.data.support import every


@pytest.fixture
def digits(cache_dir: str) -> Callable[..., DigitsData]:
    def make(**options: Any) -> DigitsData:
        common = {
            "name": "digits",
            "image_size": 8,
            "channels": 1,
            "cache_dir": cache_dir,
        }
        return configured.data("digits", **{**common, **options})

    return make


def rows(data: DigitsData | RandomData, part: str) -> list[bytes]:
    return [
        image.tobytes() + bytes([label])
        for image, label in zip(every(data, part), data.splits[part].labels, strict=True)
    ]


def test_digits_are_those_of_scikit_learn(digits: Callable[..., DigitsData]) -> None:
    data = digits()
    spec = data.open()
    assert spec.class_names == tuple("0123456789") and not spec.pretend and data.trains_in_seconds
    source = load_digits()
    pixels = np.rint(source.images / 16 * 255).astype(np.uint8)
    expected = sorted(image.tobytes() + bytes([label]) for image, label in zip(pixels, source.target, strict=True))
    assert len(expected) == 1797 and sorted(rows(data, "train") + rows(data, "test")) == expected
    counts = np.bincount(source.target)
    assert np.bincount(data.splits["test"].labels).tolist() == [round(0.2 * count) for count in counts]


def test_digits_test_part_never_moves(digits: Callable[..., DigitsData]) -> None:
    one, other = (
        digits(),
        digits(seed=1, split_seed=1, validation_share=0.3, cache_dir=str(digits().cache_dir / "other")),
    )
    assert one.open().digest == other.open().digest and rows(one, "test") == rows(other, "test")


def test_digits_resized_in_three_channels(digits: Callable[..., DigitsData]) -> None:
    small, large = digits(), digits(image_size=32, channels=3)
    small.open()
    large.open()
    for index in (0, 700):
        image = Image.fromarray(every(small, "train")[index, ..., 0]).resize((32, 32), Image.Resampling.BILINEAR)
        assert np.array_equal(every(large, "train")[index], np.asarray(image)[..., None].repeat(3, 2))


def random(cache_dir: str, **options: Any) -> RandomData:
    common = {"name": "random", "image_size": 8, "channels": 3, "cache_dir": cache_dir, "images": 50, "num_classes": 10}
    return configured.data("random", **{**common, **options})


def test_random_images_are_always_the_same_and_never_kept(cache_dir: str) -> None:
    one, other = random(cache_dir), random(cache_dir, seed=4)
    spec = one.open()
    assert spec == other.open() and spec.pretend and spec.num_classes == 10
    assert rows(one, "train") == rows(other, "train") and rows(one, "test") == rows(other, "test")
    assert not set(rows(one, "train")) & set(rows(one, "test"))
    assert not Path(cache_dir).exists()


def test_random_pixels_are_uniform(cache_dir: str) -> None:
    data = random(cache_dir, images=500, image_size=16)
    spec = data.open().preprocessing
    counts = np.bincount(every(data, "train").ravel(), minlength=256)  # 1,500 each, deviation 39
    assert counts.min() > 1500 - 5 * 39 and counts.max() < 1500 + 5 * 39
    assert spec.mean == pytest.approx([0.5] * 3, abs=0.01) and spec.std == pytest.approx([12**-0.5] * 3, abs=0.01)


@pytest.mark.parametrize(("images", "classes"), [(50, 10), (10, 10), (13, 10), (512, 1000), (2, 2), (2, 1000)])
def test_random_classes(cache_dir: str, images: int, classes: int) -> None:
    data = random(cache_dir, images=images, num_classes=classes)
    assert data.open().num_classes == classes
    for part in ("train", "test"):
        assert every(data, part).shape == (images, 8, 8, 3)
        assert len(set(data.splits[part].labels)) == min(images, classes)
    assert len(data.train_indices) + len(data.validation_indices) == images
    assert len(data.validation_indices) == max(1, round(images / 10))


def test_random_of_any_shape(cache_dir: str) -> None:
    data = random(cache_dir, images=4, image_size=224, channels=1, num_classes=2)
    assert data.open().input_shape == (1, 224, 224) and tuple(data.calibration()[:].shape) == (3, 1, 224, 224)
    assert data.spec.digest != random(cache_dir, images=4, image_size=224, channels=3, num_classes=2).open().digest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": None}, "data.num_classes is None"),
        ({"num_classes": 1}, "at least 2"),
        ({"images": 1}, "data.images is 1"),
    ],
)
def test_random_bad_options(cache_dir: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        random(cache_dir, **options)
