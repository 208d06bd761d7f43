"""Images get the pixels that torchvision's own transforms give them, wherever these do the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from qexp.data.pixels import normalise, to_array, to_arrays
from qexp.types import Preprocessing

PLAIN = Preprocessing(3, (32, 32), (0.0,) * 3, (1.0,) * 3)
SIZES = [(40, 40), (37, 61), (61, 37), (32, 32), (33, 32), (500, 331), (7, 90), (32, 33), (100, 31)]


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * height).integers(256, size=(height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
@pytest.mark.parametrize("size", SIZES)
def test_the_pixels_are_those_of_torchvision(size: tuple[int, int], interpolation: str) -> None:
    image, mode = picture(*size), InterpolationMode(interpolation)
    stretched = transforms.Resize((24, 32), mode)(image)
    how = replace(PLAIN, size=(24, 32), interpolation=interpolation)
    assert np.array_equal(to_array(image, how), np.asarray(stretched))
    for side, resize_to in ((32, 36), (24, 31), (32, None)):
        theirs = transforms.Compose([transforms.Resize(resize_to or side, mode), transforms.CenterCrop(side)])(image)
        how = replace(PLAIN, size=(side, side), resize="crop", resize_to=resize_to, interpolation=interpolation)
        assert np.array_equal(to_array(image, how), np.asarray(theirs))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("wanted", [(24, 32), (32, 24), (5, 64)])
def test_a_crop_covers_and_a_padded_image_lies_inside(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    white = Image.new("RGB", size, "white")
    assert (to_array(white, replace(PLAIN, size=wanted, resize="crop")) == 255).all()
    padded = to_array(white, replace(PLAIN, size=wanted, resize="pad"))
    rows, columns = (np.flatnonzero((padded == 255).all(axis=2).any(1 - axis)) for axis in (0, 1))
    height, width = len(rows), len(columns)
    assert height == wanted[0] or width == wanted[1]
    assert abs(height - width * size[1] / size[0]) <= max(1, size[1] / size[0])  # the aspect ratio, but for rounding
    for found, side in ((rows, wanted[0]), (columns, wanted[1])):  # in the middle
        assert abs(found[0] - (side - 1 - found[-1])) <= 1


def test_photographs_are_turned_upright_on_request() -> None:
    image = Image.new("RGB", (32, 32), "black")
    image.paste("white", (0, 0, 32, 8))  # the upper quarter
    image.getexif()[0x0112] = 6  # the camera was turned: the first row is the right side
    assert (to_array(image, PLAIN)[:8] == 255).all()
    turned = to_array(image, replace(PLAIN, orient=True))
    assert (turned[:, -8:] == 255).all() and not turned[:, :-8].any()


def test_normalised_as_torchvision_does_it() -> None:
    image = picture(32, 32)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    theirs = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])(image)
    ours = normalise(to_array(image, PLAIN)[None], replace(PLAIN, mean=mean, std=std))
    assert ours.dtype == np.float32 and ours.flags["C_CONTIGUOUS"]
    torch.testing.assert_close(torch.from_numpy(ours[0]), theirs, rtol=0, atol=2e-6)
    whole = normalise(to_array(image, PLAIN)[None], replace(PLAIN, pixel_range=255.0))
    np.testing.assert_allclose(whole[0], np.asarray(image).transpose(2, 0, 1), rtol=1e-6)


def test_arrays_that_only_need_cropping_are_cropped() -> None:
    images = np.random.default_rng(0).integers(256, size=(2, 32, 32, 3), dtype=np.uint8)
    how = replace(PLAIN, size=(32, 32), resize="crop", resize_to=40)
    expected = np.stack([to_array(Image.fromarray(image), how) for image in images])
    assert np.array_equal(to_arrays(images, how), expected) and not np.array_equal(expected, images)
    assert to_arrays(images, PLAIN) is images
