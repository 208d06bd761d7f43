"""Augmentation against plain NumPy, and against torchvision, one image at a time."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from qexp.data.augment import Augmentation, crop_and_flip, cutout
from qexp.data.folder import FolderData
from qexp.types import UserError, digest

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


def test_those_are_mirrored_that_are_named() -> None:
    images, named = torch.randint(256, (40, 6, 6, 3), dtype=torch.uint8), torch.arange(40) % 3 == 0
    expected = torch.where(named[:, None, None, None], images.flip(2), images)
    assert torch.equal(crop_and_flip(images, 0, named, generator()), expected)
    fill = torch.zeros(3, dtype=torch.uint8)
    assert torch.equal(options(flip="alternating").change(images, fill, 1, mirrored=named), expected)


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


PLAIN = {"padding": 0, "flip": False}
NOTHING = {**PLAIN, "cutout": 0, "random_resized_crop": None, "policy": "none", "mixup": 0.0, "cutmix": 0.0}


def options(**changed: float | str | None) -> Augmentation:
    """No augmentation but what is asked for."""
    return Augmentation(**{**NOTHING, **changed})  # type: ignore[arg-type]


def seed(*of: int | str) -> int:
    """What random numbers are seeded with. If it changed, a training that is resumed would see other batches."""
    return int(digest([*of])[:15], 16)


def test_the_defaults_change_a_batch_as_they_always_did(make_folder: Callable[..., FolderData]) -> None:
    data = make_folder()
    data.open()
    images = torch.randint(256, (16, 8, 8, 3), dtype=torch.uint8)
    expected = crop_and_flip(images, 2, True, generator(seed(0, 5, 1)))
    assert torch.equal(data.augment(images, step=5, rank=1), expected)
    x, labels = data.normalise(expected), torch.arange(16) % 2
    assert all(a is b for a, b in zip(data.mix(x, labels, 5, 1), (x, labels), strict=True))


@pytest.mark.parametrize(
    ("changed", "part", "transform"),
    [
        ({"random_resized_crop": 0.3}, "crop", v2.RandomResizedCrop((24, 20), scale=(0.3, 1))),
        ({"policy": "trivial"}, "policy", v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR)),
        ({"policy": "rand"}, "policy", v2.RandAugment(interpolation=v2.InterpolationMode.BILINEAR)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_is_changed_as_torchvision_does(
    changed: dict[str, float | str], part: str, transform: Callable[[Tensor], Tensor], channels: int
) -> None:
    images = torch.randint(256, (40, 24, 20, channels), dtype=torch.uint8)
    before, fill = images.clone(), torch.zeros(channels, dtype=torch.uint8)
    found = options(**changed).change(images, fill, 3, 4, 5)
    torch.manual_seed(seed(3, 4, 5, part))
    for image, result in zip(images, found, strict=True):
        assert torch.equal(transform(image.permute(2, 0, 1)), result.permute(2, 0, 1))
    assert found.dtype == torch.uint8 and torch.equal(images, before) and not torch.equal(found, images)


def test_a_resized_crop_takes_the_place_of_the_padding() -> None:
    images, fill = torch.randint(256, (8, 9, 9, 3), dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8)
    crops = [options(random_resized_crop=0.5, padding=padding).change(images, fill, 1) for padding in (0, 4)]
    assert torch.equal(*crops)
    floats = images.float()  # as a function of the user may have made them
    assert options(random_resized_crop=0.5).change(floats, fill, 1).dtype == torch.float32


def mixed(images: int = 32, classes: int = 5, **alphas: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x and one-hot labels, both float64, and what becomes of them."""
    x, labels = torch.rand(images, 3, 12, 10) + 0.5, torch.arange(images) % classes
    made, shares = options(**alphas).mix(x, labels, classes, 7)
    assert made.dtype == shares.dtype == torch.float32 and shares.shape == (images, classes)
    return x.double(), nn.functional.one_hot(labels, classes).double(), made.double(), shares.double()


def test_mixup_blends_images_and_labels_in_the_same_shares() -> None:
    x, labels, made, shares = mixed(mixup=0.8)
    others = torch.arange(32).roll(1)
    one = float(shares[1, 1])  # of its own class, which its neighbour's is not
    assert 0 < one < 1
    torch.testing.assert_close(made, one * x + (1 - one) * x[others], rtol=0, atol=1e-6)
    torch.testing.assert_close(shares, one * labels + (1 - one) * labels[others], rtol=0, atol=1e-6)


def test_cutmix_shares_are_those_of_the_pixels() -> None:
    x, labels, made, shares = mixed(cutmix=1)  # as one writes it on the command line
    others = x[torch.arange(32).roll(1)]
    own, foreign = ((made == source.float().double()).all(1) for source in (x, others))
    assert (own ^ foreign).all() and foreign.any() and own.any()
    rows, columns = foreign[0].nonzero(as_tuple=True)
    box = torch.zeros(12, 10, dtype=torch.bool)
    box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    assert (foreign == box).all()  # one rectangle, at the same place in all images
    kept = own.double().mean((1, 2))[:, None]
    torch.testing.assert_close(shares, kept * labels + (1 - kept) * labels.roll(1, 0), rtol=0, atol=1e-6)


def test_shares_are_drawn_from_the_beta_distribution() -> None:
    x, labels = torch.zeros(2, 3, 4, 4), torch.tensor([0, 1])
    shares = torch.stack([options(mixup=0.4).mix(x, labels, 2, step)[1][0, 0] for step in range(2000)]).double()
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)); the deviation of the mean is 0.008.
    assert abs(float(shares.mean()) - 0.5) < 0.035 and abs(float(shares.var()) - 1 / 7.2) < 0.012


def test_of_mixup_and_cutmix_each_batch_draws_one() -> None:
    x, labels = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)]), torch.tensor([0, 1])
    cut = 0
    for step in range(400):
        made, _ = options(mixup=1.0, cutmix=1.0).mix(x, labels, 2, step)
        cut += bool(((made == 0) | (made == 1)).all())
    assert abs(cut - 200) < 4.5 * 10


def test_mixing_is_fixed_by_seed_step_and_rank(make_folder: Callable[..., FolderData]) -> None:
    chosen = {"random_resized_crop": 0.3, "policy": "trivial", "mixup": 0.5, "cutmix": 1.0}
    data, reseeded = make_folder(augmentation=chosen), make_folder(augmentation=chosen, seed=1)
    images, labels = torch.randint(256, (16, 8, 8, 3), dtype=torch.uint8), torch.arange(16) % 2

    def batch(data: FolderData, step: int, rank: int) -> tuple[Tensor, Tensor]:
        data.open()
        return data.mix(data.normalise(data.augment(images, step, rank)), labels, step, rank)

    torch.manual_seed(1)
    state = torch.get_rng_state()
    x, shares = batch(data, 5, 0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(batch(data, 5, 0), (x, shares), strict=True))
    others = [batch(data, 6, 0), batch(data, 5, 1), batch(reseeded, 5, 0)]
    assert not any(torch.equal(x, other) or torch.equal(shares, share) for other, share in others)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"random_resized_crop": 1}, "random_resized_crop is 1; give the smallest share of the area .*between 0 and 1"),
        ({"random_resized_crop": 0.0}, "random_resized_crop is 0.0; give"),
        ({"random_resized_crop": "half"}, "random_resized_crop is 'half'; give"),
        ({"random_resized_crop": True}, "random_resized_crop is True; give"),
        ({"policy": "trivia"}, "policy is 'trivia': did you mean 'trivial'. Known: none, rand, trivial"),
        ({"policy": None}, "policy is None: .*Known: none, rand, trivial"),
        ({"flip": "both"}, "flip is 'both'; give true, false or alternating"),
        ({"mixup": -0.2}, "mixup is -0.2; give alpha of the beta distribution, a number above 0, or 0 for none"),
        ({"mixup": None}, "mixup is None; give alpha"),
        ({"cutmix": True}, "cutmix is True; give alpha"),
        ({"cutmix": math.inf}, "cutmix is inf; give alpha"),
    ],
)
def test_wrong_options_are_errors(changed: dict[str, float | str | None], message: str) -> None:
    with pytest.raises(UserError, match=rf"^data\.augmentation\.{message}"):
        options(**changed)


@pytest.mark.parametrize("name", ["trivial", "rand"])
def test_a_policy_takes_no_images_of_a_function_of_the_user(name: str, make_folder: Callable[..., FolderData]) -> None:
    with pytest.raises(
        UserError, match=f"policy={name} needs images of 8 bits, and data.transform=tests.data.support.every"
    ):
        make_folder(transform="tests.data.support.every", augmentation={"policy": name})
