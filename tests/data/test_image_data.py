"""From images to what a network is fed: normalised, in batches, for training, validation, test and calibration."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn

from qexp.data.folder import FolderData
from qexp.data.loaders import Loaders
from qexp.types import UserError
from tests.data.support import every

Make = Callable[..., FolderData]


def normalised(data: FolderData, images: np.ndarray) -> np.ndarray:
    """x[B,C,H,W] float64 of images[B,H,W,C]."""
    return (
        (images.astype(np.float64) / 255 - np.array(data.spec.preprocessing.mean))
        / np.array(data.spec.preprocessing.std)
    ).transpose(0, 3, 1, 2)


def opened(make_folder: Make, **options: Any) -> FolderData:
    data = make_folder(**options)
    data.open()
    return data


@pytest.mark.parametrize("channels", [1, 3])
def test_normalise_against_float64(make_folder: Make, channels: int) -> None:
    data = make_folder(channels=channels)
    data.open()
    images = every(data, "train")
    x = data.normalise(torch.from_numpy(np.array(images)))
    assert (
        x.dtype == torch.float32
        and x.shape == (20, channels, 8, 8)
        and x.is_contiguous(memory_format=torch.channels_last)
    )
    np.testing.assert_allclose(x.numpy(), normalised(data, images), atol=2e-6)


def test_training_part_is_zero_on_average_with_deviation_one(make_folder: Make) -> None:
    data = make_folder()
    data.open()
    x = data.normalise(torch.from_numpy(data.pixels("train", data.train_indices))).double()
    assert x.mean((0, 2, 3)).numpy() == pytest.approx(np.zeros(3), abs=1e-6)
    assert x.std((0, 2, 3), correction=0).numpy() == pytest.approx(np.ones(3), abs=1e-6)


def indices_of(data: FolderData, x: Tensor) -> list[int]:
    """Which training images x[N,C,H,W] are, by their pixels."""
    known = {image.tobytes(): index for index, image in enumerate(every(data, "train"))}
    mean, std = np.array(data.spec.preprocessing.mean), np.array(data.spec.preprocessing.std)
    pixels = np.rint((x.double().numpy().transpose(0, 2, 3, 1) * std + mean) * 255).astype(np.uint8)
    return [known[image.tobytes()] for image in pixels]


def test_calibration_images_are_plain_training_images(make_folder: Make) -> None:
    data = make_folder(calibration_images=7, validation_share=0.4)
    x = data.calibration()[:]
    found = indices_of(data, x)  # fails for an augmented image
    assert len(set(found)) == 7 and set(found) <= set(data.train_indices.tolist())
    np.testing.assert_allclose(x.numpy(), normalised(data, data.pixels("train", np.array(found))), atol=2e-6)
    again, reseeded, resplit = (
        make_folder(calibration_images=7, validation_share=0.4, **o) for o in ({}, {"seed": 9}, {"split_seed": 9})
    )
    assert torch.equal(again.calibration()[:], x) and torch.equal(reseeded.calibration()[:], x)
    assert not torch.equal(resplit.calibration()[:], x)


def test_calibration_takes_the_whole_training_part_where_it_is_small(make_folder: Make) -> None:
    data = make_folder(calibration_images=1000, validation_share=0.4)
    assert indices_of(data, data.calibration()[:]) == data.train_indices.tolist()


def test_training_batches_cover_the_training_part_in_a_new_order_each_epoch(make_folder: Make) -> None:
    def epochs(**options: Any) -> list[list[int]]:
        data = make_folder(validation_share=0.4, **options)
        data.open()
        loader = Loaders(data, 16).train_dataloader()
        orders = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            batches = [indices_of(data, data.normalise(images)) for images, *_ in loader]
            orders.append([index for batch in batches for index in batch])
            assert sorted(orders[-1]) == data.train_indices.tolist()
        return orders

    first, second = epochs()
    assert first != second and epochs() == [first, second] and epochs(seed=1)[0] != first


def test_images_and_labels_belong_together(make_folder: Make) -> None:
    data = make_folder(eval_batch_size=3)
    data.open()
    loaders = Loaders(data, 4)
    parts = (
        (loaders.val_dataloader(), "train", data.validation_indices),
        (loaders.test_dataloader(), "test", range(8)),
    )
    for loader, part, indices in parts:
        images, labels, _ = (torch.cat(column).numpy() for column in zip(*loader, strict=True))
        chosen, known = list(indices), data.splits[part].labels
        assert np.array_equal(images, every(data, part)[chosen]) and np.array_equal(labels, known[chosen])
    for batch, batch_labels, _ in loaders.train_dataloader():
        assert batch.dtype == torch.uint8
        assert batch_labels.tolist() == data.splits["train"].labels[indices_of(data, data.normalise(batch))].tolist()


def test_last_batch_is_dropped_in_training_only(make_folder: Make) -> None:
    data = make_folder(eval_batch_size=4)
    data.open()
    loaders = Loaders(data, 4)
    assert [len(labels) for _, labels, _ in loaders.train_dataloader()] == [4, 4, 4, 4]  # of 18
    assert [len(labels) for _, labels, _ in loaders.test_dataloader()] == [4, 4]
    whole = Loaders(opened(make_folder), 18)
    assert [len(labels) for _, labels, _ in whole.train_dataloader()] == [18]
    assert len(loaders.train_dataloader().dataset[0][0]) == 8  # one image at a time works as well


def test_only_training_batches_are_augmented(make_folder: Make) -> None:
    data = opened(make_folder)
    loaders = Loaders(data, 4)
    images, labels = torch.from_numpy(np.array(every(data, "train"))), torch.arange(20)
    for training, step in ((True, 3), (True, 4), (False, 3)):
        progress = SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(ready=step)))
        loaders.trainer = SimpleNamespace(
            training=training, global_rank=1, current_epoch=0, fit_loop=SimpleNamespace(epoch_loop=progress)
        )  # type: ignore
        x, unchanged = loaders.on_after_batch_transfer((images, labels, labels > 9), 0)
        expected = data.augment(images, step, rank=1) if training else images
        assert torch.equal(x, data.normalise(expected)) and torch.equal(unchanged, labels)


class Watching(LightningModule):
    """A small network that keeps what it is fed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.fed = (
            nn.Conv2d(3, 2, 8),
            {"train": list[Tensor](), "val": list[Tensor](), "test": list[Tensor]()},
        )

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        self.fed["train"].append(batch[0])
        return nn.functional.cross_entropy(self.layer(batch[0]).flatten(1), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.fed["val"].append(batch[0])

    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.fed["test"].append(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


@pytest.mark.parametrize("batch_size", [0, 1.5, "many"])
def test_a_batch_size_that_is_none_is_an_error(batch_size: Any, make_folder: Make) -> None:
    with pytest.raises(UserError, match="recipe.batch_size is .*; it must be a whole number of at least 1"):
        Loaders(make_folder(), batch_size)


@pytest.mark.filterwarnings("ignore")
def test_fed_by_lightning(make_folder: Make) -> None:
    data = make_folder(eval_batch_size=5, validation_share=0.4)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer, network = Trainer(accelerator="cpu", max_epochs=2, num_sanity_val_steps=1, **quiet), Watching()  # type: ignore[arg-type]
    # The first images are normalised in inference mode, and training goes on from there.
    trainer.fit(network, Loaders(data, 6))
    trainer.test(network, Loaders(data, 6), verbose=False)
    assert len(network.fed["train"]) == 4
    assert indices_of(data, torch.cat(network.fed["val"][-2:])) == data.validation_indices.tolist()
    np.testing.assert_allclose(torch.cat(network.fed["test"]).numpy(), normalised(data, every(data, "test")), atol=2e-6)
    loader = Loaders(opened(make_folder, validation_share=0.4), 6).train_dataloader()
    expected = list[Tensor]()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        begun = len(expected)
        expected += [data.normalise(data.augment(images, begun + index)) for index, (images, *_) in enumerate(loader)]
    assert all(torch.equal(x, y) for x, y in zip(network.fed["train"], expected, strict=True))


@pytest.mark.filterwarnings("ignore")
def test_alternating_flips_show_every_image_both_ways_in_two_epochs(make_folder: Make, tmp_path: Path) -> None:
    """By random halves first, and in the same way when the training is resumed."""
    quiet: dict[str, Any] = {
        "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip

    def fed(epochs: int, checkpoint: Path | None = None, seed: int = 0) -> list[dict[int, bool]]:
        """Of each epoch, whether each image was mirrored."""
        data = make_folder(
            validation_share=0.1, seed=seed, augmentation={"padding": 0, "flip": "alternating"}, eval_batch_size=20
        )
        trainer, network = Trainer(accelerator="cpu", max_epochs=epochs, num_sanity_val_steps=0, **quiet), Watching()
        trainer.fit(network, Loaders(data, 6), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        x = torch.cat(network.fed["train"]).unflatten(0, (-1, 18))
        known = data.normalise(torch.from_numpy(np.array(every(data, "train"))))
        found = []
        for epoch in x:
            sides = {}
            for image in epoch:
                same, mirrored = ((known == other).all((1, 2, 3)) for other in (image, image.flip(2)))
                sides[int((same | mirrored).nonzero())] = bool(mirrored.any())
            found.append(sides)
        return found

    epochs = fed(5)
    assert all(sides.keys() == epochs[0].keys() and len(sides) == 18 for sides in epochs)
    for one, next_one in itertools.pairwise(epochs):
        assert all(one[image] != next_one[image] for image in one)
    assert 2 <= sum(epochs[0].values()) <= 16  # of a binomial distribution: outside with a probability of 0.0001
    fed(2)
    assert fed(5, tmp_path / "2.ckpt") == epochs[2:]
    assert fed(1, seed=1)[0] != epochs[0] and fed(1)[0] == epochs[0]


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_training_is_fed_the_same_mixed_images(make_folder: Make, tmp_path: Path) -> None:
    chosen = {"random_resized_crop": 0.3, "policy": "trivial", "mixup": 0.5, "cutmix": 1.0}
    quiet: dict[str, Any] = {
        "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip

    def fed(epochs: int, checkpoint: Path | None = None) -> list[Tensor]:
        trainer, network = Trainer(accelerator="cpu", max_epochs=epochs, num_sanity_val_steps=0, **quiet), Watching()
        data = make_folder(validation_share=0.4, augmentation=chosen)
        trainer.fit(network, Loaders(data, 4), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return network.fed["train"]

    first, whole = fed(1), fed(2)
    rest = fed(2, tmp_path / "1.ckpt")
    assert len(first) == len(rest) == 3
    assert all(torch.equal(x, y) for x, y in zip([*first, *rest], whole, strict=True))
