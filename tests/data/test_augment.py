"""Augmentation against plain NumPy, one image at a time."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch

from qexp.data.augment import crop_and_flip, cutout
from qexp.data.folder import FolderData

Choice = tuple[int, int, bool]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reference(image: np.ndarray, padding: int, choice: Choice) -> np.ndarray:
    """The window of image[H,W,C] padded by reflection whose corner is at (top, left), mirrored or not."""
    top, left, mirrored = choice
    height, width, _ = image.shape
    window = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")[
        top : top + height, left : left + width
    ]
    return window[:, ::-1] if mirrored else window


def choices_of(images: int, size: tuple[int, int], padding: int, flip: bool) -> list[Choice]:
    """What crop_and_flip(generator()) does to each image, read off images that hold their coordinates."""
    height, width = size
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    coordinates = np.stack([rows, columns], -1)
    known = {
        reference(coordinates, padding, choice).tobytes(): choice
        for choice in itertools.product(range(2 * padding + 1), range(2 * padding + 1), (False, True))
    }
    cropped = crop_and_flip(torch.from_numpy(coordinates).repeat(images, 1, 1, 1), padding, flip, generator())
    return [known[image.numpy().tobytes()] for image in cropped]


@pytest.mark.parametrize(("size", "padding"), [((8, 8), 3), ((6, 9), 2), ((5, 5), 4), ((4, 4), 0)])
def test_crop_and_flip_is_a_window_of_the_padded_image(size: tuple[int, int], padding: int) -> None:
    images = np.random.default_rng(0).integers(256, size=(64, *size, 3), dtype=np.uint8)
    choices = choices_of(64, size, padding, flip=True)
    expected = np.stack([reference(image, padding, choice) for image, choice in zip(images, choices, strict=True)])
    assert np.array_equal(crop_and_flip(torch.from_numpy(images), padding, True, generator()).numpy(), expected)


def test_all_shifts_are_equally_likely_and_half_is_mirrored() -> None:
    choices = choices_of(10_000, (8, 8), 2, flip=True)  # no two of these 50 choices look alike
    mirrored = sum(choice[2] for choice in choices)
    assert abs(mirrored - 5000) < 4 * 50  # four deviations
    counts = Counter(choice[:2] for choice in choices)
    assert len(counts) == 25 and all(abs(count - 400) < 4.5 * 20 for count in counts.values())
    assert (
        abs(sum(choice == (2, 2, True) for choice in choices) - 200) < 4.5 * 15
    )  # mirroring is independent of the shift


def test_no_flip_unless_asked() -> None:
    assert not any(mirrored for _, _, mirrored in choices_of(200, (8, 8), 2, flip=False))
    images = torch.randint(256, (5, 8, 8, 1), dtype=torch.uint8)
    assert torch.equal(crop_and_flip(images, 0, False, generator()), images)


def test_pure_mirror() -> None:
    images = torch.randint(256, (50, 6, 6, 3), dtype=torch.uint8)
    flipped = crop_and_flip(images, 0, True, generator())
    kinds = [(torch.equal(a, b), torch.equal(a.flip(1), b)) for a, b in zip(images, flipped, strict=True)]
    assert set(kinds) == {(True, False), (False, True)}


@pytest.mark.parametrize("side", [1, 4, 5])
def test_cutout_hides_one_square_centred_anywhere(side: int) -> None:
    size, fill = 9, torch.tensor([7, 8, 9], dtype=torch.uint8)
    images = torch.randint(10, 256, (3000, size, size, 3), dtype=torch.uint8)
    hidden = cutout(images, side, fill, generator())
    masks = {}
    for y, x in itertools.product(range(size), repeat=2):
        mask = np.zeros((size, size), bool)
        mask[max(0, y - side // 2) : y - side // 2 + side, max(0, x - side // 2) : x - side // 2 + side] = True
        masks[mask.tobytes()] = (y, x)
    covered = (hidden == fill).all(-1)
    centres = Counter(masks[mask.numpy().tobytes()] for mask in covered)
    assert len(centres) == size**2 and max(centres.values()) < 80  # 37 expected, deviation 6
    assert torch.equal(hidden[~covered], images[~covered])


def test_augment_is_fixed_by_seed_step_and_rank(make_folder: Callable[..., FolderData]) -> None:
    data, reseeded = (
        make_folder(augmentation={"cutout": 3}),
        make_folder(augmentation={"cutout": 3}, seed=1),
    )
    data.open()
    reseeded.open()
    images = torch.randint(256, (16, 8, 8, 3), dtype=torch.uint8)
    torch.manual_seed(1)
    one = data.augment(images, step=5)
    torch.manual_seed(2)
    assert torch.equal(data.augment(images, step=5), one)
    others = [data.augment(images, step=6), data.augment(images, step=5, rank=1), reseeded.augment(images, step=5)]
    assert not any(torch.equal(one, other) for other in others)


def test_augment_applies_the_options(make_folder: Callable[..., FolderData]) -> None:
    images = torch.full((16, 8, 8, 3), 200, dtype=torch.uint8)
    without = make_folder(augmentation={"padding": 0, "flip": False})
    without.open()
    assert torch.equal(without.augment(images, 0), images)
    hiding = make_folder(augmentation={"cutout": 4})
    how = hiding.open().preprocessing
    values = hiding.augment(images, 0).reshape(-1, 3).unique(dim=0).tolist()
    assert values == sorted([[round(255 * m) for m in how.mean], [200, 200, 200]])
    assert images.unique().tolist() == [200]  # the batch itself stays as it was
