"""Calibration images that are made from batch norms, and data without training images."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from qexp.data.folder import FolderData
from qexp.data.generated import generated_images
from qexp.data.random import RandomData
from qexp.method.artifacts import make_artifact
from qexp.types import Preprocessing, UserError
from tests import configured

Make = Callable[..., FolderData]
HOW = Preprocessing(3, (8, 8), (0.5, 0.4, 0.3), (0.2, 0.2, 0.1), "stretch", None, "bilinear", False, 1.0, "")
REAL = (torch.tensor([0.5, -0.3, 0.2]), torch.tensor([0.8, 1.2, 0.5]))  # mean and variance that pixels can have


def remembering() -> nn.Sequential:
    """A network whose first batch norm knows the pixels of its images, and the second what a convolution makes of them.

    The convolution weighs the channels differently, so that its statistics are known in closed form.
    """
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)).eval()
    first, convolution, second = network
    first.running_mean, first.running_var = REAL
    with torch.no_grad():  # standard normal and uncorrelated channels come into the convolution
        second.running_mean.zero_()
        second.running_var.copy_(convolution.weight.square().sum((1, 2, 3)))
    return network


def test_batch_norms_see_what_they_remember() -> None:
    network = remembering()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = generated_images(network, HOW, 48, 150, seed=0)
    assert x.shape == (48, 3, 8, 8) and x.dtype == torch.float32
    pixels = x.double().numpy()
    assert pixels.mean((0, 2, 3)) == pytest.approx(REAL[0].numpy(), abs=0.02)
    assert pixels.var((0, 2, 3)) == pytest.approx(REAL[1].numpy(), rel=0.04)
    made = np.einsum(
        "oc,nchw->nohw",
        network[1].weight.detach().double()[..., 0, 0].numpy(),
        (pixels - REAL[0].numpy()[:, None, None]) / np.sqrt(REAL[1].numpy() + 1e-5)[:, None, None],
    )
    assert made.var((0, 2, 3)) == pytest.approx(before["2.running_var"].numpy(), rel=0.04)
    low, high = (np.array([(value - m) / s for m, s in zip(HOW.mean, HOW.std, strict=True)]) for value in (0, 1))
    assert (pixels.min((0, 2, 3)) >= low - 1e-5).all() and (pixels.max((0, 2, 3)) <= high + 1e-5).all()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(generated_images(network, HOW, 48, 5, 0), generated_images(network, HOW, 48, 5, 0))
    assert not torch.equal(generated_images(network, HOW, 48, 5, 0), generated_images(network, HOW, 48, 5, 1))


def test_without_batch_norms_nothing_can_be_made() -> None:
    with pytest.raises(UserError, match=r"no batch norms.*Give data\.calibration=FOLDER"):
        generated_images(nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)), HOW, 4, 2, 0)


def test_no_training_images_are_needed(make_folder: Make, images_root: Path) -> None:
    shutil.rmtree(images_root / "train")
    options = {"calibration": "generated", "generated_images": 5, "generated_steps": 3}
    with pytest.raises(UserError, match=r"no images to take mean and deviation of\. Give data\.mean and data\.std"):
        make_folder(**options).open()
    data = make_folder(mean=0.5, std=0.25, **options)
    source = {"model": "own", "weights": "0123"}
    told = data.generate_from(remembering(), source)
    images = data.calibration()
    assert len(images) == 5 and torch.equal(images[:], torch.cat([*images.split(2)]))
    assert images[:].shape[1:] == data.spec.input_shape
    with pytest.raises(UserError, match=r"have no classes"):
        data.calibration_labels()

    other = remembering()
    other[0].running_mean.zero_()  # which would be seen if the images were made again
    assert data.generate_from(other, source) == told and torch.equal(data.calibration()[:], images[:])
    assert data.generate_from(other, {**source, "weights": "4567"}) != told
    assert not torch.equal(data.calibration()[:], images[:])


def test_only_a_folder_takes_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.calibration=photos: only data=folder takes a folder"):
        configured.data("random", cache_dir=str(tmp_path), calibration="photos")


@pytest.mark.integration
def test_what_was_calibrated_on_generated_images_is_marked(pretend_data: RandomData, tmp_path: Path) -> None:
    network, source = configured.small_network(), {"model": "small", "weights": "0123"}
    generates = configured.data(
        "random", images=64, num_classes=10, name="random", image_size=16, channels=3, cache_dir=str(tmp_path),
        calibration="generated", generated_images=4, generated_steps=2,
    )  # fmt: skip
    spec = configured.engine("eager").spec
    marked = {**source, "calibration": generates.generate_from(network, source)}
    real = make_artifact(configured.method("static"), network, pretend_data, spec, source, tmp_path / "a")
    made = {
        name: make_artifact(configured.method(name), network, generates, spec, marked, tmp_path / "a")
        for name in ("static", "none")
    }
    assert made["static"].label == f"{real.label} (generated images)"
    assert made["none"].label == "fp32" and made["static"].key != real.key
