"""Checks that a network meets the images that it was trained on, prepared as they were then."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from qexp.types import DataSpec, UserError


def check_agreement(spec: DataSpec, other: DataSpec, given: set[str]) -> None:
    """Check that data agree with those that a baseline was trained on.

    Args:
        spec: The data.
        other: The data that the baseline was trained on.
        given: Which of `mean` and `std` somebody has chosen. Others are taken from the baseline.

    Raises:
        UserError: The classes, the preparation of the images or the validation part are not the same.
    """
    if other.class_names != spec.class_names or other.input_shape != spec.input_shape:
        raise UserError(
            f"The baseline was trained on {other.num_classes} classes of {other.input_shape} images "
            f"({', '.join(other.class_names[:5])}, ...), {spec.name} has {spec.num_classes} of {spec.input_shape} "
            f"({', '.join(spec.class_names[:5])}, ...). Choose the data, and the data.classes, it was trained on."
        )
    if (other.logits, other.outputs) != (spec.logits, spec.outputs):
        raise UserError(
            f"The baseline was trained to answer with the logits {_as_listed(other)}, and {spec.name} asks for "
            f"{_as_listed(spec)}. Give the data.classes and data.among that it was trained with."
        )
    theirs, own = asdict(other.preprocessing), asdict(spec.preprocessing)
    asked = spec.preprocessing.geometry.keys() | {"pixel_range"} | given
    if different := [name for name in own if name in asked and not _alike(own[name], theirs[name])]:
        raise UserError(
            "The baseline was trained on images that were prepared otherwise. Give what it was trained with: "
            + " ".join(f"data.{name}={_as_override(theirs[name])}" for name in different)
        )
    if (other.split_seed, other.validation_share) != (spec.split_seed, spec.validation_share):
        raise UserError(
            f"The baseline was trained on another part of {spec.name!r}, so that it knows images of this "
            f"validation part. Give its data.split_seed={other.split_seed} "
            f"data.validation_share={other.validation_share:g}, or train it again."
        )


def _as_listed(spec: DataSpec) -> str:
    """Which of a network's logits are the classes, for a message."""
    first = ", ".join(map(str, spec.logits[:5])) + ", ..." * (len(spec.logits) > 5)
    return f"{first} of {spec.outputs}" if spec.logits else "of its classes alone"


def _alike(one: Any, other: Any) -> bool:
    """Whether two options mean the same. Means and deviations may be rounded."""
    numbers = isinstance(one, tuple) and all(isinstance(value, float) for value in one)
    return bool(np.allclose(one, other, atol=1e-3)) if numbers else one == other


def _as_override(value: Any) -> str:
    """A value as one writes it on the command line."""
    if isinstance(value, tuple):
        return f"[{','.join(f'{each:.6g}' for each in value)}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
