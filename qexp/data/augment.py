"""Changes batches of training images at random, on whatever device they are.

qexp's own steps change a whole batch in one gather. Those of torchvision change one image at a time, and importing them
takes seconds, so this is done only where one of them is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qexp.data.options import check_whole
from qexp.types import Preprocessing, UserError, digest, nearest

POLICIES = ("none", "trivial", "rand")
ALTERNATING = "alternating"


@dataclass(frozen=True)
class Augmentation:
    """How training images are changed at random. Its options are explained in conf/data/_common.yaml.

    What is drawn depends only on the numbers `of` that the methods are given, such as a seed and a step. PyTorch's
    global generators stay as they are.

    Raises:
        UserError: An option is unknown or out of range.
    """

    padding: int
    flip: bool | str
    cutout: int
    random_resized_crop: float | None
    policy: str
    mixup: float
    cutmix: float

    def __post_init__(self) -> None:
        check_whole(0, **{"augmentation.padding": self.padding, "augmentation.cutout": self.cutout})
        if self.flip not in (True, False, ALTERNATING):
            raise UserError(f"data.augmentation.flip is {self.flip!r}; give true, false or {ALTERNATING}.")
        area = self.random_resized_crop
        if area is not None and not (_is_number(area) and 0 < area < 1):
            raise UserError(
                f"data.augmentation.random_resized_crop is {area!r}; give the smallest share of the area that is kept, "
                "between 0 and 1, such as 0.25, or null."
            )
        if self.policy not in POLICIES:
            raise UserError(f"data.augmentation.policy is {self.policy!r}: {nearest(str(self.policy), POLICIES)}")
        for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if not _is_number(alpha) or alpha < 0:
                raise UserError(
                    f"data.augmentation.{name} is {alpha!r}; give alpha of the beta distribution, a number "
                    "above 0, or 0 for none."
                )

    def check(self, how: Preprocessing) -> None:
        """Check that images that are prepared like this can be changed like this.

        Raises:
            UserError: They cannot.
        """
        if self.padding >= min(how.size):  # there are not as many pixels to reflect
            raise UserError(
                f"data.augmentation.padding is {self.padding}; it must be less than data.image_size, {min(how.size)}."
            )
        if self.policy != "none" and how.transform:
            raise UserError(
                f"data.augmentation.policy={self.policy} needs images of 8 bits, and data.transform={how.transform} "
                "makes others. Give data.augmentation.policy=none, or leave data.transform null."
            )

    def change(self, images: Tensor, fill: Tensor, *of: int, mirrored: Tensor | None = None) -> Tensor:
        """Crop and mirror images, change them by the policy, and cut out.

        A policy is TrivialAugmentWide (Müller and Hutter, 2021) or RandAugment (Cubuk et al., 2020).

        Args:
            images: images[B,H,W,C] uint8, or float32 without a policy.
            fill: fill[C] uint8, which squares that are cut out are set to.
            *of: What decides the random numbers.
            mirrored: mirrored[B] bool, which of them are mirrored with flip=alternating. Needed for nothing else.

        Returns:
            The changed images, of the same shape and type.
        """
        generator = torch.Generator(images.device).manual_seed(_seed(*of))
        if self.random_resized_crop:
            images = _one_by_one(images, resized_crop(images.shape[1:3], self.random_resized_crop), *of, "crop")
        flip = mirrored if self.flip == ALTERNATING else bool(self.flip)
        assert flip is not None
        images = crop_and_flip(images, 0 if self.random_resized_crop else self.padding, flip, generator)
        if self.policy != "none":
            images = _one_by_one(images, policy(self.policy), *of, "policy")
        return cutout(images, self.cutout, fill, generator) if self.cutout else images

    def mix(self, x: Tensor, labels: Tensor, num_classes: int, *of: int) -> tuple[Tensor, Tensor]:
        """Mix each image with its neighbour in the batch, by mixup (Zhang et al., 2018) or CutMix (Yun et al., 2019).

        If both are chosen, one of them is drawn for the batch.

        Args:
            x: Normalised images x[B,C,H,W] float32.
            labels: labels[B] int64.
            num_classes: Number K of classes.
            *of: What decides the random numbers.

        Returns:
            The mixed images, and the share of each class in them, [B,K] float32; or both as they were, if nothing is
            to be mixed.
        """
        if not (self.mixup or self.cutmix):
            return x, labels
        from torchvision.transforms import v2

        kinds = {v2.MixUp: self.mixup, v2.CutMix: self.cutmix}
        chosen = [kind(alpha=float(alpha), num_classes=num_classes) for kind, alpha in kinds.items() if alpha]
        with _seeded(*of, "mix"):
            return v2.RandomChoice(chosen)(x, labels)


def resized_crop(size: tuple[int, ...], area: float) -> Callable[[Tensor], Tensor]:
    """Make torchvision's crop of a random share of the area, at least `area`, resized to size (H, W)."""
    from torchvision.transforms import v2

    return v2.RandomResizedCrop(size, scale=(area, 1.0))


def policy(name: str) -> Callable[[Tensor], Tensor]:
    """Make torchvision's policy of this name, with interpolation as in torchvision's own recipes."""
    from torchvision.transforms import v2

    kind = {"trivial": v2.TrivialAugmentWide, "rand": v2.RandAugment}[name]
    return kind(interpolation=v2.InterpolationMode.BILINEAR)


def _one_by_one(images: Tensor, transform: Callable[[Tensor], Tensor], *of: int | str) -> Tensor:
    """Change each of images[B,H,W,C] by a transform of one image[C,H,W], which draws anew for each."""
    with _seeded(*of):
        return torch.stack([transform(image.permute(2, 0, 1)).permute(1, 2, 0) for image in images])


@contextmanager
def _seeded(*of: int | str) -> Iterator[None]:
    """Seed the CPU's global generator until the end of the block: torchvision draws from it, for images on GPUs too."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_seed(*of))
        yield


def _seed(*of: int | str) -> int:
    return int(digest([*of])[:15], 16)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def crop_and_flip(images: Tensor, padding: int, flip: bool | Tensor, generator: torch.Generator) -> Tensor:
    """Take random crops of images that are padded by reflection, and mirror some of them.

    Padding and mirroring are index arithmetic, so the images are read once and nothing is padded in memory.

    Args:
        images: images[B,H,W,C].
        padding: Pixels on each side, fewer than height and width.
        flip: Whether each image is mirrored with probability 1/2, or mirrored[B] bool: which ones are.
        generator: Source of random numbers, on the device of the images.

    Returns:
        The crops, in the shape of the images.
    """
    batch, height, width, _ = images.shape
    device = images.device
    rows = _offsets(batch, height, padding, generator, device)
    columns = _offsets(batch, width, padding, generator, device)
    if flip is True:
        flip = torch.rand(batch, generator=generator, device=device) < 0.5
    if flip is not False:
        columns = torch.where(flip[:, None], columns.flip(1), columns)
    flat = (rows[:, :, None] * width + columns[:, None, :]).view(batch, -1)
    flat = flat + torch.arange(batch, device=device)[:, None] * (height * width)
    return images.reshape(batch * height * width, -1).index_select(0, flat.view(-1)).view(images.shape)


def _offsets(batch: int, size: int, padding: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Source indices[B,size] along one axis for a random shift of each image by -padding..padding, with reflection."""
    shift = torch.randint(-padding, padding + 1, (batch, 1), generator=generator, device=device)
    index = (torch.arange(size, device=device)[None] + shift).abs()
    return (size - 1) - ((size - 1) - index).abs()


def cutout(images: Tensor, side: int, fill: Tensor, generator: torch.Generator) -> Tensor:
    """Cover one square at a random place in each image.

    DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017: the centre of the
    square is uniform over the image, so part of the square may be outside.

    Args:
        images: images[B,H,W,C] uint8.
        side: Side of the square in pixels.
        fill: fill[C] uint8, which the square is set to.
        generator: Source of random numbers, on the device of the images.

    Returns:
        The images with their squares.
    """
    batch, height, width, _ = images.shape
    rows, columns = (
        (
            torch.arange(size, device=images.device)[None]
            - torch.randint(size, (batch, 1), generator=generator, device=images.device)
        )
        for size in (height, width)
    )
    low, high = -(side // 2), (side + 1) // 2
    hidden = ((rows >= low) & (rows < high))[:, :, None] & ((columns >= low) & (columns < high))[:, None, :]
    return torch.where(hidden[..., None], fill, images)
