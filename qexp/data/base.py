"""The base class of all datasets: uint8 images on disk, a fixed split, and augmentation on the device."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cache as memoised
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue
from torch import Tensor

from qexp.data import augment, cache
from qexp.files import write_json
from qexp.keys import key
from qexp.types import DataSpec, UserError, cache_name, digest

# Sources import these too, but they do not decode: a change of them keeps the decoded images.
DECODES_NOTHING = ("qexp.data.base", "qexp.files", "qexp.types")


@dataclass(frozen=True)
class Augmentation:
    """How training images are changed at random.

    Raises:
        UserError: `padding` or `cutout` is not a whole number of at least 0.
    """

    padding: int
    flip: bool
    cutout: int

    def __post_init__(self) -> None:
        _check_whole(0, **{"augmentation.padding": self.padding, "augmentation.cutout": self.cutout})


def _check_whole(least: int, **options: int) -> None:
    for name, value in options.items():
        if not isinstance(value, int) or value < least:
            raise UserError(f"data.{name} is {value!r}; it must be a whole number of at least {least}.")


def open_data(config: DictConfig) -> ImageData:
    """Make and open the dataset of `config.data`.

    Its name and number of classes are put into the config, where the model finds them.

    Raises:
        UserError: Options are missing or wrong, or images are missing, corrupt or contradictory.
    """
    data = _build(config.data)
    spec = data.open()
    config.data.name, config.data.num_classes = spec.name, spec.num_classes
    return data


def _build(config: DictConfig) -> ImageData:
    try:
        data = instantiate(config)
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


class ImageData:
    """A dataset of images with class labels, in a training, a validation and a test part.

    A source of images defines `source_digest` and `decode`, and everything else is shared. A class that sets `pretend`
    has images without meaning, which are not stored and are split regardless of their classes.

    Raises:
        UserError: An option is out of range.
    """

    pretend = False
    trains_in_seconds = False

    def __init__(
        self,
        name: str,
        image_size: int,
        channels: int,
        cache_dir: str,
        num_classes: int | None,
        eval_batch_size: int,
        seed: int,
        split_seed: int,
        validation_share: float,
        calibration_images: int,
        augmentation: Augmentation,
    ):
        _check_whole(1, image_size=image_size, calibration_images=calibration_images, eval_batch_size=eval_batch_size)
        padding = augmentation.padding
        if padding >= image_size:  # there are not as many pixels to reflect
            raise UserError(
                f"data.augmentation.padding is {padding}; it must be less than data.image_size, {image_size}."
            )
        if not name or "/" in name or name.startswith("."):
            raise UserError(f"data.name is {name!r}; give the dataset a name that can be a folder's: data.name=NAME.")
        if channels not in (1, 3):
            raise UserError(f"data.channels is {channels}; images have 1 (grey) or 3 (colour) channels.")
        if not 0 < validation_share < 1:
            raise UserError(f"data.validation_share is {validation_share}; it must lie between 0 and 1.")
        self.name, self.image_size, self.channels, self.cache_dir = name, image_size, channels, Path(cache_dir)
        self.num_classes, self.eval_batch_size, self.augmentation = num_classes, eval_batch_size, augmentation
        self.seed, self.split_seed = seed, split_seed
        self.validation_share, self.calibration_images = validation_share, calibration_images

    # Every source defines the next two methods.

    def source_digest(self) -> str:
        """Digest of what the images are decoded from. It differs if they do, and is known without decoding them."""
        raise NotImplementedError

    def decode(self) -> cache.Decoded:
        """Decode the images of both parts to `image_size` and `channels`, with labels and the names of the classes."""
        raise NotImplementedError

    # All sources share the rest.

    def open(self) -> DataSpec:
        """Map the images into memory, and decode them first if that was not done before. Cheap when called again.

        Returns:
            The spec of what was found.

        Raises:
            UserError: Images are missing, corrupt or contradictory.
        """
        if not hasattr(self, "spec"):
            content = digest([self.source_digest(), self.image_size, self.channels])
            decoder = key("decoder", code=[self, "qexp.data.cache"], without=DECODES_NOTHING)[:8]
            folder = self.cache_dir / "data" / cache_name(self.name, content, decoder)
            found = self.decode() if self.pretend else cache.open_or_build(folder, self.decode)
            names, self.splits = found.class_names, found.splits
            if self.num_classes not in (None, len(names)):
                raise UserError(
                    f"data.num_classes is {self.num_classes}, but {self.name} has {len(names)} classes. Leave it null."
                )
            images, labels = self.splits["train"].images, self.splits["train"].labels
            strata = np.zeros_like(labels) if self.pretend else labels
            self.train_indices, self.validation_indices = cache.split_train(
                strata, self.validation_share, self.split_seed
            )
            mean, std = cache.channel_statistics(images, self.train_indices)
            self.spec = DataSpec(
                name=self.name, class_names=names, channels=self.channels, image_size=self.image_size,
                mean=mean, std=std, digest=content, split_seed=self.split_seed, pretend=self.pretend,
                validation_share=self.validation_share, decoder=decoder,
            )  # fmt: skip
            indices = folder / self.spec.validation_file
            if not self.pretend and not indices.exists():
                write_json(indices, self.validation_indices.tolist())
        return self.spec

    @property
    def training_options(self) -> dict[str, Any]:
        """What decides the batches of a training, in addition to the images and the recipe."""
        return {"augmentation": self.augmentation, "seed": self.seed}

    def calibration(self) -> Tensor:
        """Normalised calibration images x[N,C,H,W] float32: a fixed subset of the training part, not augmented.

        They are contiguous, as engines get them, since a network may have views that take no other memory order.
        """
        chosen = self._calibration_indices()
        images = self.normalise(torch.from_numpy(self.splits["train"].images[chosen]))
        return images.clone(memory_format=torch.contiguous_format)

    def calibration_labels(self) -> Tensor:
        """Labels[N] int64 of the calibration images."""
        chosen = self._calibration_indices()
        return torch.from_numpy(self.splits["train"].labels[chosen])

    def _calibration_indices(self) -> np.ndarray:
        self.open()
        count = min(self.calibration_images, len(self.train_indices))
        return np.sort(np.random.default_rng(self.split_seed).choice(self.train_indices, count, replace=False))

    def normalise(self, images: Tensor) -> Tensor:
        """Turn images[B,H,W,C] uint8 into x[B,C,H,W] float32, in the channels_last memory format.

        Each value becomes (value / 255 - mean) / std of its channel.
        """
        scale, shift, _ = _constants(self.spec.mean, self.spec.std, images.device)
        x = torch.addcmul(shift, images.float(), scale)
        # With one channel both memory orders are the same, but the strides would say channels_last to a convolution.
        return x.permute(0, 3, 1, 2) if self.channels > 1 else x.reshape(len(x), 1, *x.shape[1:3])

    def normalise_like(self, other: DataSpec) -> None:
        """Take mean and standard deviation from the data that a baseline was trained on.

        If that was another set of images under the same name, a warning says so.

        Raises:
            UserError: The classes, the shape of the images or the validation part are not the same.
        """
        spec = self.open()
        if (other.class_names, other.channels, other.image_size) != (spec.class_names, spec.channels, spec.image_size):
            raise UserError(
                f"The baseline was trained on {other.num_classes} classes of {other.input_shape} images "
                f"({', '.join(other.class_names[:5])}, ...), {self.name} has {spec.num_classes} of {spec.input_shape} "
                f"({', '.join(spec.class_names[:5])}, ...). Choose the data it was trained on."
            )
        if (other.split_seed, other.validation_share) != (spec.split_seed, spec.validation_share):
            raise UserError(
                f"The baseline was trained on another part of {self.name!r}, so that it knows images of this "
                f"validation part. Give its data.split_seed={other.split_seed} "
                f"data.validation_share={other.validation_share:g}, or train it again."
            )
        if other.digest != spec.digest:
            warnings.warn(
                f"The baseline was trained on other files of {self.name!r} than these; its validation part may differ.",
                stacklevel=2,
            )
        self.spec = replace(spec, mean=other.mean, std=other.std)

    def augment(self, images: Tensor, step: int, rank: int = 0) -> Tensor:
        """Crop, mirror and cut out at random, in the same way for the same seed, step and rank.

        Args:
            images: images[B,H,W,C] uint8.
            step: Number of the training step.
            rank: Number of the process.

        Returns:
            The changed images, of the same shape.
        """
        options = self.augmentation
        generator = torch.Generator(images.device).manual_seed(int(digest([self.seed, step, rank])[:15], 16))
        images = augment.crop_and_flip(images, options.padding, options.flip, generator)
        if options.cutout:
            fill = _constants(self.spec.mean, self.spec.std, images.device)[2]
            images = augment.cutout(images, options.cutout, fill, generator)
        return images


@memoised
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Scale[C] and shift[C] of the normalisation, and the mean pixel[C].

    They are kept on the device, because copying them to a GPU would wait for it each time.
    """
    scale = torch.tensor([1 / (255 * s) for s in std], device=device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
    return scale, shift, torch.tensor([round(255 * m) for m in mean], dtype=torch.uint8, device=device)
