"""Calibration images that are made from what the batch norms of a network remember of its training images."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qexp.data.pixels import factors
from qexp.data.store import locked
from qexp.files import building
from qexp.progress import progress
from qexp.types import Preprocessing, UserError

GENERATED = "generated"  # what data.calibration calls these images
TOGETHER = 32  # images of which the statistics are taken together
RATE = 0.1  # step size of Adam at the start, of images with unit variance


@dataclass(frozen=True)
class Generator:
    """Makes the calibration images of one network, when they are asked for, and keeps them on disk.

    Attributes:
        network: The network in eval mode, with its weights.
        how: How its images are prepared.
        count: How many images to make.
        steps: Steps of the optimiser for each batch of them.
        seed: Seed of the noise that they begin as.
        folder: Folder to keep them in, which belongs to just these weights and options.
    """

    network: nn.Module
    how: Preprocessing
    count: int
    steps: int
    seed: int
    folder: Path

    def images(self) -> Tensor:
        """x[N,C,H,W] float32. Errors are those of `generated_images`."""
        file = self.folder / "images.npy"
        with locked(self.folder, "all"):
            if not file.exists():
                made = generated_images(self.network, self.how, self.count, self.steps, self.seed)
                with building(self.folder) as partial:
                    np.save(partial / file.name, made.numpy())
        return torch.from_numpy(np.load(file))


def generated_images(network: nn.Module, how: Preprocessing, count: int, steps: int, seed: int) -> Tensor:
    """Make images of which the batch norms of a network see the statistics that they remember of its training.

    Noise is optimised by Adam until the mean and the standard deviation of what comes into each batch norm are close to
    the running ones (ZeroQ, Cai et al. 2020, equation 2; both are divided by the running deviation here, so that all
    layers count alike). Pixels stay within the range of real ones.

    Args:
        network: The network in eval mode, which stays as it is.
        how: How its images are prepared.
        count: How many images.
        steps: Steps of the optimiser for each batch of them.
        seed: Seed of the noise.

    Returns:
        x[N,C,H,W] float32, normalised.

    Raises:
        UserError: The network has no batch norms with running statistics.
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        raise UserError(
            "data.calibration=generated: the network has no batch norms, whose statistics images could be made from. "
            "Give data.calibration=FOLDER with some images instead; they need no classes."
        )
    starts = range(0, count, TOGETHER)
    bar = iter(progress(range(len(starts) * steps), "Generating calibration images", len(starts) * steps))
    generator = torch.Generator().manual_seed(seed)
    made = [_optimised(network, norms, how, min(TOGETHER, count - start), steps, generator, bar) for start in starts]
    next(bar, None)  # which ends the bar
    return torch.cat(made)


def _optimised(
    network: nn.Module, norms: list[_BatchNorm], how: Preprocessing, count: int, steps: int,
    generator: torch.Generator, bar: Iterator[int],
) -> Tensor:  # fmt: skip
    """Make one batch x[B,C,H,W] of images."""
    black, white = _range(how)
    x = torch.randn(count, how.channels, *how.size, generator=generator).clamp(black, white).requires_grad_()
    adam = torch.optim.Adam([x], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        next(bar)
        with _distances(norms) as distances:
            network(x)
        adam.zero_grad()
        torch.stack(distances).sum().backward()
        adam.step()
        schedule.step()
        with torch.no_grad():
            x.clamp_(black, white)
    return x.detach()


def _range(how: Preprocessing) -> tuple[Tensor, Tensor]:
    """The normalised values [C,1,1] of black and of white pixels. A function of the user may give any."""
    scale, shift = (torch.from_numpy(values)[:, None, None] for values in factors(how))
    if how.transform:
        return torch.full_like(shift, -torch.inf), torch.full_like(shift, torch.inf)
    return shift, 255 * scale + shift


@contextmanager
def _distances(norms: list[_BatchNorm]) -> Iterator[list[Tensor]]:
    """Collect how far the statistics of what comes into each batch norm are from the running ones."""
    found: list[Tensor] = []

    def compare(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None
        variance, mean = torch.var_mean(inputs[0].transpose(0, 1).flatten(1), dim=1, correction=0)
        remembered = (norm.running_var + norm.eps).sqrt()
        off = (mean - norm.running_mean) / remembered, ((variance + norm.eps).sqrt() - remembered) / remembered
        found.append(sum((each.square().mean() for each in off), torch.zeros(())))

    handles = [norm.register_forward_pre_hook(compare) for norm in norms]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
