"""What every dataset gives: uint8 images on disk, one fixed split, batches that are augmented on the device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, SequentialSampler

from qexp.data import augment, cache
from qexp.types import DataSpec, UserError, digest


@dataclass(frozen=True)
class Augmentation:
    """padding: pixels of the random crop; flip: mirror half of the images; cutout: side of the hidden square in pixels."""

    padding: int = 4
    flip: bool = True
    cutout: int = 0


class Batches(Dataset):
    """Chosen images of an array, fetched a batch at a time: images[B,H,W,C] uint8 and labels[B]."""

    def __init__(self, split: cache.Split, indices: np.ndarray):
        self.split, self.indices = split, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        chosen = self.indices[indices]
        return torch.from_numpy(self.split.images[chosen]), torch.from_numpy(self.split.labels[chosen])


def _as_it_is(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch


def open_data(config: DictConfig) -> ImageData:
    """The dataset of `config.data`, opened; what it found (class count, name) is put into the config for the model to use.

    Errors: UserError as of `ImageData.open`.
    """
    data: ImageData = instantiate(config.data)
    spec = data.open()
    config.data.name, config.data.num_classes = spec.name, spec.num_classes
    return data


class ImageData(LightningDataModule):
    """A dataset of images with class labels, in a training, a validation and a test part.

    A source says where its images come from: `source_digest()`, `decode()` and `class_names()`; everything else is
    shared. `name` is the dataset's id; image_size is the side in pixels; batch_size and seed are those of training,
    while split_seed fixes the validation part and never changes with `seed`, or a second seed would be validated on
    images that the first was trained on.
    """

    pretend = False
    trains_in_seconds = False

    def __init__(
        self,
        name: str,
        image_size: int,
        channels: int,
        cache_dir: str,
        num_classes: int | None = None,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        seed: int = 0,
        split_seed: int = 0,
        validation_share: float = 0.1,
        calibration_images: int = 1024,
        augmentation: Augmentation | None = None,
    ):
        super().__init__()
        for key, value in {"image_size": image_size, "batch_size": batch_size, "calibration_images": calibration_images}.items():
            if value < 1:
                raise UserError(f"data.{key} is {value}; it must be at least 1.")
        if channels not in (1, 3):
            raise UserError(f"data.channels is {channels}; images have 1 (grey) or 3 (colour) channels.")
        if not 0 < validation_share < 1:
            raise UserError(f"data.validation_share is {validation_share}; it must lie between 0 and 1.")
        self.name, self.image_size, self.channels, self.cache_dir = name, image_size, channels, Path(cache_dir)
        self.batch_size, self.eval_batch_size, self.seed, self.split_seed = batch_size, eval_batch_size, seed, split_seed
        self.validation_share, self.calibration_images = validation_share, calibration_images
        self.augmentation = augmentation or Augmentation()
        self.num_classes = num_classes

    # What a source defines.

    def source_digest(self) -> str:
        """Digest of the bytes that the images are decoded from."""
        raise NotImplementedError

    def class_names(self) -> list[str]:
        raise NotImplementedError

    def decode(self) -> cache.Decoded:
        """The images of 'train' and 'test' as [N,H,W,C] uint8 with their labels [N]."""
        raise NotImplementedError

    # What all share.

    def open(self) -> DataSpec:
        """Decode (once) and map the images; the spec of what was found. Cheap when called again.

        Errors: UserError for missing, corrupt or contradictory images.
        """
        if not hasattr(self, "spec"):
            content = digest([self.source_digest(), self.image_size, self.channels])
            self.folder = self.cache_dir / "data" / f"{self.name}-{content[:16]}"
            self.splits = cache.open_or_build(self.folder, self.decode)
            labels = self.splits["train"].labels
            self.train_indices, self.validation_indices = cache.split_train(labels, self.validation_share, self.split_seed)
            mean, std = cache.channel_statistics(self.splits["train"].images, self.train_indices)
            names = self.class_names()
            if self.num_classes not in (None, len(names)):
                raise UserError(f"data.num_classes is {self.num_classes}, but {self.name} has {len(names)} classes. Leave it null.")
            self.spec = DataSpec(
                name=self.name, class_names=tuple(names), channels=self.channels, image_size=self.image_size,
                mean=mean, std=std, digest=content, split_seed=self.split_seed, pretend=self.pretend,
            )  # fmt: skip
        return self.spec

    def setup(self, stage: str | None = None) -> None:
        self.open()

    def train_dataloader(self) -> DataLoader:
        dataset = Batches(self.splits["train"], self.train_indices)
        workers, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        # DistributedSampler shuffles by (seed, epoch) alone: a resumed epoch sees the images in the same order.
        sampler: DistributedSampler = DistributedSampler(dataset, num_replicas=workers, rank=rank, seed=self.seed)
        drop_last = len(dataset) > self.batch_size * workers
        return DataLoader(dataset, self.batch_size, sampler=sampler, collate_fn=_as_it_is, drop_last=drop_last)

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader(Batches(self.splits["train"], self.validation_indices))

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader(Batches(self.splits["test"], np.arange(len(self.splits["test"].labels))))

    def _eval_loader(self, dataset: Batches) -> DataLoader:
        return DataLoader(dataset, self.eval_batch_size, sampler=SequentialSampler(dataset), collate_fn=_as_it_is)

    def calibration(self) -> Tensor:
        """Normalised x[N,C,H,W] float32 of a fixed subset of the training part, without augmentation."""
        self.open()
        count = min(self.calibration_images, len(self.train_indices))
        chosen = np.random.default_rng(self.split_seed).choice(self.train_indices, count, replace=False)
        return self.normalise(torch.from_numpy(self.splits["train"].images[np.sort(chosen)]))

    def normalise(self, images: Tensor) -> Tensor:
        """images[B,H,W,C] uint8 -> x[B,C,H,W] float32, (value / 255 - mean) / std, in channels_last memory order."""
        scale = torch.tensor([1 / (255 * s) for s in self.spec.std], device=images.device)
        shift = torch.tensor([-m / s for m, s in zip(self.spec.mean, self.spec.std, strict=True)], device=images.device)
        return torch.addcmul(shift, images.float(), scale).permute(0, 3, 1, 2)

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        images, labels = batch
        if self.trainer and self.trainer.training:
            images = self.augment(images, step=self.trainer.fit_loop.total_batch_idx, rank=self.trainer.global_rank)
        return self.normalise(images), labels

    def augment(self, images: Tensor, step: int, rank: int = 0) -> Tensor:
        """The random crop, mirror and cutout of training step `step`: the same for the same seed, step and rank."""
        options = self.augmentation
        generator = torch.Generator(images.device).manual_seed(int(digest([self.seed, step, rank])[:15], 16))
        images = augment.crop_and_flip(images, options.padding, options.flip, generator)
        if options.cutout:
            fill = torch.tensor([round(255 * m) for m in self.spec.mean], device=images.device)
            images = augment.cutout(images, options.cutout, fill, generator)
        return images
