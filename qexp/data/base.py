"""The base class of all datasets: images that are decoded when they are used, a fixed split, and augmentation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qexp.data.agreement import check_agreement
from qexp.data.augment import Augmentation
from qexp.data.generated import GENERATED, Generator
from qexp.data.images import CalibrationImages, Images
from qexp.data.normalising import mean_pixel, normalised
from qexp.data.options import check_whole, geometry, per_channel
from qexp.data.splitting import channel_statistics, split_train, spread
from qexp.data.store import Listing, Split, open_or_make
from qexp.data.transforming import function
from qexp.files import write_json
from qexp.keys import key
from qexp.types import DataSpec, UserError, cache_name, digest, nearest

# Sources import these too, but they do not decode: a change of them keeps the decoded images. All that a file of labels
# says is in the digest of the images.
DECODES_NOTHING = ("qexp.data.base", "qexp.data.labels", "qexp.files", "qexp.types")
PREPROCESS = ("auto", "model", "data")
STATISTICS = 1024  # images of which mean and deviation are taken, where no network is trained on all


class ImageData:
    """A dataset of images with class labels, in a training, a validation and a test part.

    A source of images defines `source_digest`, `listing` and `decode`, and everything else is shared. Images are
    decoded when they are used for the first time. A class that sets `whole` decodes all of them at once, since its
    source is one archive. One that sets `pretend` has images without meaning, which are not stored and are split
    regardless of their classes.

    Raises:
        UserError: An option is out of range.
    """

    pretend = False
    whole = False
    trains_in_seconds = False

    def __init__(
        self,
        name: str,
        preprocess: str,
        image_size: int | Sequence[int] | str,
        channels: int,
        resize: str,
        resize_to: int | None,
        interpolation: str,
        orient: bool,
        mean: float | str | Sequence[float],
        std: float | str | Sequence[float],
        pixel_range: float,
        transform: str | None,
        cache_dir: str,
        num_classes: int | None,
        eval_batch_size: int,
        seed: int,
        split_seed: int,
        validation_share: float,
        calibration: str | None,
        calibration_images: int,
        generated_images: int,
        generated_steps: int,
        augmentation: Augmentation,
    ):
        if preprocess not in PREPROCESS:  # which qexp.jobs.preprocessing follows before data are made
            raise UserError(f"data.preprocess={preprocess} is unknown. {nearest(str(preprocess), PREPROCESS)}")
        check_whole(1, calibration_images=calibration_images, eval_batch_size=eval_batch_size)
        check_whole(1, generated_images=generated_images, generated_steps=generated_steps)
        if calibration not in (None, GENERATED):
            raise UserError(f"data.calibration={calibration}: only data=folder takes a folder. Give null or generated.")
        self.how = geometry(
            channels, image_size, resize, resize_to, interpolation, orient, pixel_range, transform or ""
        )
        if transform:
            function(transform)  # raises its errors before its code becomes part of a key
        self.given = per_channel("mean", mean, channels), per_channel("std", std, channels)
        augmentation.check(self.how)
        if not name or "/" in name or name.startswith("."):
            raise UserError(f"data.name is {name!r}; give the dataset a name that can be a folder's: data.name=NAME.")
        if not 0 < validation_share < 1:
            raise UserError(f"data.validation_share is {validation_share}; it must lie between 0 and 1.")
        self.name, self.channels, self.cache_dir = name, channels, Path(cache_dir)
        self.num_classes, self.eval_batch_size, self.augmentation = num_classes, eval_batch_size, augmentation
        self.seed, self.split_seed = seed, split_seed
        self.validation_share, self.calibration_images = validation_share, calibration_images
        self.generates = calibration == GENERATED
        self.generated = {"count": generated_images, "steps": generated_steps, "seed": split_seed}

    # Every source defines the next three methods.

    def source_digest(self) -> str:
        """Digest of what the images are decoded from, known without decoding them. A copy of it has the same."""
        raise NotImplementedError

    def listing(self) -> Listing:
        """Tell which images there are."""
        raise NotImplementedError

    def decode(self, part: str, indices: np.ndarray) -> Iterable[np.ndarray | None]:
        """Decode images of a part to images[H,W,C], as `how` says, in the order of `indices`. None: it is broken."""
        raise NotImplementedError

    # All sources share the rest.

    def source_version(self) -> str:
        """Says which version of its files the source has now, if they may change while their digest stays."""
        return ""

    def open(self) -> DataSpec:
        """Find out which images there are. Cheap when called again, and also if all was decoded before.

        Returns:
            The spec of what was found.

        Raises:
            UserError: Images are missing, corrupt or contradictory.
        """
        if not hasattr(self, "spec"):
            self.spec = self._open()
            if not (self.given[0] and self.given[1]):
                self._take_statistics(self._source, self._sample(STATISTICS))
        return self.spec

    def _open(self) -> DataSpec:
        content = digest([self.source_digest(), self.how.geometry])
        without = DECODES_NOTHING
        code = [self, "qexp.data.pixels", *([self.how.transform.rpartition(".")[0]] if self.how.transform else [])]
        decoder = key("decoder", code=code, without=without, version=self.source_version())[:8]
        self.folder = self.cache_dir / "data" / cache_name(self.name, content, decoder)
        names, self.splits = self._opened()
        logits, outputs = self.selected()
        if self.num_classes not in (None, outputs or len(names)):
            raise UserError(
                f"data.num_classes is {self.num_classes}, but {self.name} has {len(names)} classes. Leave it null."
            )
        labels = self.splits["train"].labels
        strata = np.zeros_like(labels) if self.pretend else labels
        self.train_indices, self.validation_indices = split_train(strata, self.validation_share, self.split_seed)
        calibration = self.splits.get("calibration")
        # Those that are chosen from them stay the same when broken ones are left out of training.
        self._to_calibrate = np.arange(len(calibration.labels)) if calibration else self.train_indices
        mean, std = (
            chosen or (default,) * self.channels for chosen, default in zip(self.given, (0.0, 1.0), strict=True)
        )
        return DataSpec(
            name=self.name, class_names=names, preprocessing=replace(self.how, mean=mean, std=std), digest=content,
            split_seed=self.split_seed, pretend=self.pretend, validation_share=self.validation_share, decoder=decoder,
            logits=logits, outputs=outputs,
        )  # fmt: skip

    def _opened(self) -> tuple[tuple[str, ...], dict[str, Split]]:
        """Open the folder of decoded images, and decode all where that cannot be done one by one."""
        if self.pretend:
            listing = self.listing()
            return listing.class_names, {
                part: Split(np.array([*self.decode(part, np.arange(len(labels)))], np.uint8), labels)
                for part, labels in listing.labels.items()
            }
        shape = (*self.how.size, self.channels)
        names, splits = open_or_make(self.folder, self.listing, shape, "float32" if self.how.transform else "uint8")
        if self.whole:
            for part, split in splits.items():
                split.prepare(np.arange(len(split.labels)), partial(self.decode, part))
        return names, splits

    def selected(self) -> tuple[tuple[int, ...], int]:
        """Which logits of a network the classes are, and how many it has. Empty and 0 if it has no others."""
        return (), 0

    def notes(self) -> dict[str, str]:
        """What records and the screen say of the images, by name."""
        return {}

    def prepare(self, part: str, indices: np.ndarray) -> np.ndarray:
        """Decode the images of a part that have these indices, unless that was done before.

        Returns:
            The indices, without those of broken images.

        Raises:
            UserError: An image is broken.
        """
        self.open()
        return self.splits[part].prepare(indices, partial(self.decode, part))

    def pixels(self, part: str, indices: np.ndarray) -> np.ndarray:
        """The images[N,H,W,C] of a part that have these indices, which are decoded if need be."""
        return self.splits[part].read(self.prepare(part, indices))

    def prepare_training(self) -> None:
        """Decode all training and validation images, and take mean and deviation of the former if they are not given.

        Raises:
            UserError: An image is broken.
        """
        self.open()
        if not len(self.train_indices):
            raise UserError(f"{self.name} has no training images, which this needs.")
        self.train_indices = self.prepare("train", self.train_indices)
        self.validation_indices = self.prepare("train", self.validation_indices)
        if not (self.given[0] and self.given[1]):
            self._take_statistics("train", self.train_indices)

    def prepare_evaluation(self, part: str, images: int | None) -> None:
        """Decode images to measure accuracy on, and write down which they are.

        Args:
            part: `test` or `validation`.
            images: How many, spread over the classes, or None for all.

        Raises:
            UserError: An image is broken.
        """
        self.open()
        if self.pretend:
            return
        source = "test" if part == "test" else "train"
        labels = self.splits[source].labels
        every = np.arange(len(labels)) if part == "test" else self.validation_indices
        chosen = self.prepare(source, every if images is None else spread(every, labels[every], images))
        file = self.folder / self.spec.evaluation_file(part, images)
        if not file.exists():
            write_json(file, chosen.tolist())

    def _take_statistics(self, part: str, indices: np.ndarray) -> None:
        """Take mean and deviation of the images with these indices, where they are not given."""
        if self.how.transform:
            return
        if not len(indices):
            raise UserError(f"{self.name} has no images to take mean and deviation of. Give data.mean and data.std.")
        found = channel_statistics(self._chunks(part, self.prepare(part, indices)), self.channels)
        mean, std = (
            given or tuple(self.how.pixel_range * value for value in taken)
            for given, taken in zip(self.given, found, strict=True)
        )
        self.spec = replace(self.spec, preprocessing=replace(self.spec.preprocessing, mean=mean, std=std))

    def _chunks(self, part: str, indices: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(indices), 256):
            yield self.splits[part].read(indices[start : start + 256])

    @property
    def training_options(self) -> dict[str, Any]:
        """What decides the batches of a training, in addition to the images and the recipe."""
        return {"augmentation": self.augmentation, "seed": self.seed}

    def generate_from(self, network: nn.Module, weights: dict[str, Any]) -> str:
        """Make the calibration images from the batch norms of a network, once they are asked for.

        Args:
            network: The network in eval mode, with its weights.
            weights: What identifies it and its weights.

        Returns:
            What identifies the images.
        """
        how = self.open().preprocessing
        made = key("generated", code=["qexp.data.generated"], weights=weights, how=how, options=self.generated)[:10]
        folder = self.cache_dir / "generated" / made
        self._generator = Generator(network, how, **self.generated, folder=folder)
        return f"{self.generated['count']} generated images {made}"

    def calibration(self) -> Images:
        """Calibration images, not augmented: generated ones, a part of their own, or a fixed subset of training."""
        self.open()
        if self.generates:
            return self._generator.images()
        return CalibrationImages(self, self._source, self.prepare(self._source, self._sample(self.calibration_images)))

    def calibration_labels(self) -> Tensor:
        """Labels[N] int64 of the calibration images.

        Raises:
            UserError: They have none.
        """
        images = self.calibration()
        if not isinstance(images, CalibrationImages) or self._source == "calibration":
            raise UserError("The images of data.calibration have no classes, which this method needs. Leave it null.")
        return torch.from_numpy(self.splits["train"].labels[images.indices])

    @property
    def _source(self) -> str:
        """The part that calibration images are taken from."""
        return "calibration" if "calibration" in self.splits else "train"

    def _sample(self, most: int) -> np.ndarray:
        """Indices of at most so many of the images that may be calibrated with."""
        count = min(most, len(self._to_calibrate))
        return np.sort(np.random.default_rng(self.split_seed).choice(self._to_calibrate, count, replace=False))

    def normalise(self, images: Tensor) -> Tensor:
        """Turn images[B,H,W,C] uint8 into x[B,C,H,W] float32, in the channels_last memory format.

        See `normalised`.
        """
        return normalised(images, self.spec.preprocessing)

    def normalise_like(self, other: DataSpec) -> dict[str, str]:
        """Take mean and standard deviation from the data that a baseline was trained on.

        Returns:
            What records and the screen say, if that was another set of images under the same name.

        Raises:
            UserError: The classes, the preparation of the images or the validation part are not the same.
        """
        spec = self.open()
        check_agreement(spec, other, {name for name, values in zip(("mean", "std"), self.given, strict=True) if values})
        self.spec = replace(spec, preprocessing=other.preprocessing)
        if other.digest == spec.digest:
            return {}
        return {"images": f"the network was trained on other files of {self.name} than these"}

    def augment(self, images: Tensor, step: int, rank: int = 0, mirrored: Tensor | None = None) -> Tensor:
        """Crop, mirror and otherwise change images at random, in the same way for the same seed, step and rank.

        Args:
            images: images[B,H,W,C].
            step: Number of the training step.
            rank: Number of the process.
            mirrored: mirrored[B] bool, which of them are mirrored where that alternates.

        Returns:
            The changed images, of the same shape.
        """
        fill = mean_pixel(self.spec.preprocessing, images.device)
        return self.augmentation.change(images, fill, self.seed, step, rank, mirrored=mirrored)

    def mix(self, x: Tensor, labels: Tensor, step: int, rank: int = 0) -> tuple[Tensor, Tensor]:
        """Mix normalised images with each other at random, in the same way for the same seed, step and rank.

        Args:
            x: x[B,C,H,W] float32.
            labels: labels[B].
            step: Number of the training step.
            rank: Number of the process.

        Returns:
            The images with the share [B,K] float32 of each class in them; or both as they were, if none are mixed.
        """
        return self.augmentation.mix(x, labels, self.spec.num_classes, self.seed, step, rank)
