"""Gives Lightning the batches of a dataset, augmented on the device that trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler, SequentialSampler

from qexp.data.base import ImageData
from qexp.types import UserError


class Batches(Dataset):
    """Chosen images of a part, fetched a batch at a time.

    A batch is images[B,H,W,C] uint8, labels[B], and heads[B] bool, how a coin fell that was tossed once for each image:
    where mirroring alternates, those with heads are mirrored in the first epoch and all others in the second.
    """

    def __init__(self, data: ImageData, part: str, indices: np.ndarray):
        self.data, self.part, self.indices = data, part, indices
        self.heads = np.random.default_rng(data.seed).random(len(data.splits[part].labels)) < 0.5

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        images, labels, heads = self.__getitems__([index])
        return images[0], labels[0], heads[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        chosen = self.indices[indices]
        known = self.data.pixels(self.part, chosen), self.data.splits[self.part].labels[chosen], self.heads[chosen]
        images, labels, heads = map(torch.from_numpy, known)
        return images, labels, heads


class Loaders(LightningDataModule):
    """Loads the batches of all three parts of a dataset.

    Args:
        data: The dataset.
        batch_size: Images per training step of one process. Validation and test use `data.eval_batch_size`.

    Raises:
        UserError: The batch size is not a whole number of at least 1.
    """

    def __init__(self, data: ImageData, batch_size: int):
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"recipe.batch_size is {batch_size!r}; it must be a whole number of at least 1.")
        super().__init__()
        self.data, self.batch_size = data, batch_size

    def setup(self, stage: str | None = None) -> None:
        self.data.prepare_training()

    def train_dataloader(self) -> DataLoader:
        dataset = Batches(self.data, "train", self.data.train_indices)
        workers, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        # DistributedSampler shuffles by seed and epoch alone, so a resumed epoch sees the images in the same order.
        sampler: DistributedSampler = DistributedSampler(dataset, num_replicas=workers, rank=rank, seed=self.data.seed)
        drop_last = len(dataset) > self.batch_size * workers
        return self._loader(dataset, self.batch_size, sampler, drop_last)

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader(Batches(self.data, "train", self.data.validation_indices))

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader(
            Batches(self.data, "test", self.data.prepare("test", np.arange(len(self.data.splits["test"].labels))))
        )

    def _eval_loader(self, dataset: Batches) -> DataLoader:
        return self._loader(dataset, self.data.eval_batch_size, SequentialSampler(dataset))

    def _loader(self, dataset: Batches, batch_size: int, sampler: Sampler, drop_last: bool = False) -> DataLoader:
        # Pinned memory lets a GPU take batches while it computes.
        pinned = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return DataLoader(
            dataset, batch_size, sampler=sampler, collate_fn=_as_it_is, drop_last=drop_last, pin_memory=pinned
        )

    def on_after_batch_transfer(
        self, batch: tuple[Tensor, Tensor, Tensor], dataloader_idx: int
    ) -> tuple[Tensor, Tensor]:
        images, labels, heads = batch
        if not (self.trainer and self.trainer.training):
            return self.data.normalise(images), labels
        # The number of batches begun before this one in all epochs. total_batch_idx counts the first two as one.
        step, rank = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready, self.trainer.global_rank
        mirrored = heads ^ bool(self.trainer.current_epoch % 2)
        changed = self.data.augment(images, step, rank, mirrored)
        return self.data.mix(self.data.normalise(changed), labels, step, rank)


def _as_it_is(batch: Any) -> Any:
    return batch
