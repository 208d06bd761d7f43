"""Chooses images: for validation, for a smaller test; and takes the statistics of their pixels."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from qexp.types import UserError


def split_train(labels: np.ndarray, validation_share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split images into a training and a validation part, in the same way for the same seed.

    The split is stratified: the rounded share of each class is for validation, but at least one image, and at least one
    is left for training. A class with a single image is only trained on.

    Args:
        labels: labels[N] of the images.
        validation_share: Share of the validation part.
        seed: Seed of the choice.

    Returns:
        Sorted indices of the training part and of the validation part.

    Raises:
        UserError: No class has two images, so that nothing is left for validation.
    """
    rng = np.random.default_rng(seed)
    validation = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = max(1, round(len(members) * validation_share))
        validation.append(members[: min(count, len(members) - 1)])
    chosen = np.sort(np.concatenate([np.empty(0, int), *validation]))
    if not len(chosen) and len(labels):
        raise UserError(
            "The training part has no class with two images: none is left for validation. Add images to data.root."
        )
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def spread(indices: np.ndarray, labels: np.ndarray, most: int) -> np.ndarray:
    """Choose images such that no class has more than one image more than another that has any left.

    Args:
        indices: Indices of the images to choose from.
        labels: labels[N] of these images.
        most: How many to choose. All are chosen if there are no more.

    Returns:
        Sorted indices, always the same for the same arguments.
    """
    order = np.random.default_rng(0).permutation(len(indices))
    turn = np.empty(len(indices), int)  # how many of its class come before an image
    for label in np.unique(labels):
        members = order[labels[order] == label]
        turn[members] = np.arange(len(members))
    return np.sort(indices[order[np.argsort(turn[order], kind="stable")][:most]])


def channel_statistics(chunks: Iterable[np.ndarray], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of images[N,H,W,C] uint8 / 255, which come in chunks.

    They are exact, because they are computed from histograms.
    """
    counts = np.zeros((channels, 256))
    for chunk in chunks:
        for channel in range(channels):
            counts[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    mean = (counts @ values) / counts.sum(1)
    variance = (counts @ values**2) / counts.sum(1) - mean**2
    # Normalising a constant channel would divide by zero. 1/255 is the smallest step of a pixel.
    std = np.maximum(np.sqrt(np.maximum(variance, 0)), 1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())
