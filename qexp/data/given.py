"""Images that a Python program holds: arrays, or datasets of torch that are not made from the config."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from qexp.data.held import Held
from qexp.data.items import ItemsData
from qexp.data.parts import Parts
from qexp.data.splitting import split_train
from qexp.keys import key
from qexp.progress import progress
from qexp.types import AS_GIVEN, Preprocessing, UserError, digest

ALL = 4096  # training images, up to which all of them are looked at to tell what they are
UNLIKE = 3  # times as wide as that of the test images, from which the range of the training images is another one
PIXELS = 32  # width of a range of floats from which they are pixels that nobody has scaled


class GivenData(ItemsData):
    """Images that the datasets of a Python program give.

    Images of Pillow or of uint8 are prepared as the options say, and keep their size if these say nothing. Tensors of
    floats x[C,H,W] are what the network takes: they are measured as they are.

    Nothing but the images says what they are. All test images and those to calibrate with are therefore looked at, and
    so are all others if there are no more than ALL. Beyond that, what the datasets hold (arrays, lists of files with
    their sizes and times) has to tell.

    Args:
        name: Name of the data.
        parts: The datasets.
        image_size: As all data take it, or None for the size of the first image.
        channels: As all data take it, or None for the channels of the first image.
        transform: As all data take it.
        num_classes: Number of the network's logits, which may be more than the classes that occur. None: as many.
        **common: What all data take.

    Raises:
        UserError: There are no datasets, the first image is none, or options ask that tensors are prepared.
    """

    def __init__(
        self, name: str, parts: Parts | None, image_size: int | Sequence[int] | None, channels: int | None,
        transform: str | None, num_classes: int | None, **common: Any,
    ):  # fmt: skip
        if parts is None:
            raise UserError("data=_given stands for images of a Python program. Give data=folder data.root=FOLDER.")
        self.parts, self._outputs = parts, num_classes
        first = self._first(next(iter(parts.datasets)))
        self.floats = isinstance(first, torch.Tensor)
        own = tuple(first.shape[1:]) if isinstance(first, torch.Tensor) else first.size[::-1]
        self._own_size = own if image_size is None else None
        if isinstance(first, torch.Tensor):
            _check_taken_as_they_are(common, image_size, channels, transform)
            channels, transform = len(first), AS_GIVEN
        elif channels is None:
            channels = 1 if first.mode in ("1", "L", "I", "I;16", "F") else 3
        super().__init__(
            name=name, image_size=[*own] if image_size is None else image_size, channels=channels,
            transform=transform, num_classes=None, **common,
        )  # fmt: skip

    @cached_property
    def _datasets(self) -> dict[str, Any]:
        return self.parts.datasets

    def called(self, part: str) -> str:
        return {"train": "the training images", "test": "the test images"}.get(part, "the calibration images")

    def _first(self, part: str) -> Any:
        """The first image of a part: x[C,H,W] if it holds floats, otherwise Pillow's."""
        image, where = self._item(part, 0)[0], f"Item 0 of {self.called(part)}"
        if _is_float(image):
            return _tensor(image, where)
        return self._picture(image, where)

    def found_classes(self) -> tuple[str, ...]:
        found = super().found_classes()
        if self.parts.class_names:
            if len(self.parts.class_names) < len(found):
                raise UserError(f"There are {len(self.parts.class_names)} class_names, but {len(found)} classes.")
            return self.parts.class_names
        if self._outputs is None or self.table or self._outputs == len(found):
            return found
        if self._outputs < len(found) or any(name != str(place) for place, name in enumerate(found)):
            raise UserError(f"num_classes is {self._outputs}, but {self.name} has {len(found)} classes. Leave it out.")
        return tuple(map(str, range(self._outputs)))

    def found_labels(self) -> dict[str, np.ndarray]:
        return {"train": np.empty(0, np.int64), **super().found_labels()}

    def found_digest(self) -> str:
        labels = self.found_labels()
        if "calibration" in labels:
            self._to_calibrate = np.arange(len(labels["calibration"]))
        else:
            self._to_calibrate = split_train(labels["train"], self.validation_share, self.split_seed)[0]
        every = {part: np.arange(len(known)) for part, known in labels.items() if len(known)}
        chosen = {
            part: all_of_it if part == "test" or len(all_of_it) <= ALL else self._sample(self.calibration_images)
            for part, all_of_it in every.items()
            if part == "test" or len(all_of_it) <= ALL or part == self._calibrated
        }
        content = {part: self._seen(part, indices) for part, indices in chosen.items()}
        if self.floats:
            self._check_ranges({part: (low, high) for part, (_, low, high) in content.items()})
        listed = {part: known.tolist() for part, known in labels.items()}
        seen = {part: found for part, (found, *_) in content.items()}
        return digest([self._held.content, listed, self.found_classes(), seen])

    def source_version(self) -> str:
        return key("given", times=self._held.times)

    @property
    def _calibrated(self) -> str:
        return "calibration" if "calibration" in self.parts.datasets else "train"

    @cached_property
    def _held(self) -> Held:
        return self._once("held", lambda: Held(*(getattr(each, "__dict__", {}) for each in self._datasets.values())))

    def _once(self, what: str, find: Callable[[], Any]) -> Any:
        if what not in self.parts.seen:
            self.parts.seen[what] = find()
        return self.parts.seen[what]

    def _seen(self, part: str, indices: np.ndarray) -> tuple[str, float, float]:
        """Digest of the prepared images of a part that have these indices, and their least and greatest value."""
        what = digest([part, indices.tolist(), self.how.geometry])
        return self._once(what, lambda: self._look(part, indices))

    def _look(self, part: str, indices: np.ndarray) -> tuple[str, float, float]:
        total, low, high = hashlib.sha256(), np.inf, -np.inf
        looked_at: Iterable[int] = progress(indices.tolist(), f"Looking at {self.called(part)}", len(indices))
        for index in looked_at:
            image = self._read(part, index)
            total.update(image.tobytes())
            low, high = min(low, float(image.min())), max(high, float(image.max()))
        return total.hexdigest(), low, high

    def _check_ranges(self, ranges: dict[str, tuple[float, float]]) -> None:
        """Check that tensors are not pixels that nobody has scaled, and lie in the same range in all parts.

        Raises:
            UserError: They are, or do not.
        """
        for part, (low, high) in ranges.items():
            if low >= 0 and high - low > PIXELS:
                raise UserError(
                    f"The tensors of {self.called(part)} lie in {low:g}..{high:g}: they look like pixels that were not "
                    "scaled. Give the images as uint8, and say with mean, std and pixel_range how they are prepared "
                    "(pixel_range=255 for a network that takes numbers up to 255)."
                )
        least, *_, most = sorted(ranges, key=lambda part: ranges[part][1] - ranges[part][0])
        (low, high), (lowest, highest) = ranges[least], ranges[most]
        if highest - lowest > UNLIKE * (high - low):
            raise UserError(
                f"The tensors of {self.called(most)} lie in {lowest:.3g}..{highest:.3g}, and those of "
                f"{self.called(least)} in {low:.3g}..{high:.3g}. Prepare both in the same way, as the network was "
                "trained."
            )

    def _read(self, part: str, index: int) -> np.ndarray:
        if self.floats:
            image, where = self._labelled(part, index), f"Item {index} of {self.called(part)}"
            if not _is_float(image):
                raise UserError(f"{where} is no tensor of floats, as the first one is. Give the same for all.")
            x = _tensor(image, where)
            wanted = (self.how.channels, *self.how.size)
            if tuple(x.shape) != wanted:
                raise UserError(
                    f"{where} has the shape {tuple(x.shape)}, and the first one {wanted}. Resize all alike."
                )
            if not x.isfinite().all():
                raise UserError(f"{where} has values that are not finite. Leave it out, or look at how it is prepared.")
            return x.permute(1, 2, 0).numpy()
        return super()._read(part, index)

    def _picture(self, image: Any, where: str) -> Any:
        picture = super()._picture(image, where)
        if getattr(self, "_own_size", None) not in (None, picture.size[::-1]):
            height, width = self._own_size or ()
            raise UserError(
                f"{where} has {picture.height}x{picture.width} pixels, and the first image {height}x{width}. Say to "
                "which size all are brought, and how: image_size=224, resize='crop'."
            )
        return picture

    def notes(self) -> dict[str, str]:
        found = super().notes()
        if self.parts.split:
            found["test part"] = "a fixed fifth of each class of the images that were given"
        return found


def _is_float(image: Any) -> bool:
    if isinstance(image, torch.Tensor):
        return image.is_floating_point()
    return isinstance(image, np.ndarray) and image.dtype.kind == "f"


def _tensor(image: Any, where: str) -> torch.Tensor:
    """An image of floats as x[C,H,W] float32. [H,W] has one channel."""
    x = torch.as_tensor(image).detach().to("cpu", torch.float32)
    x = x[None] if x.ndim == 2 else x
    if x.ndim != 3 or 0 in x.shape:
        raise UserError(f"{where} has the shape {tuple(image.shape)}; tensors of floats must be x[C,H,W].")
    if x.shape[0] not in (1, 3) and x.shape[2] in (1, 3):
        raise UserError(
            f"{where} holds floats of the shape {tuple(x.shape)}, which are taken for x[C,H,W], the form that networks "
            "take. Transpose them, or give images[H,W,C] of uint8, which qexp prepares."
        )
    return x


def _check_taken_as_they_are(common: dict[str, Any], *geometry: Any) -> None:
    """Check that no option asks to prepare tensors of floats, which are already what the network takes.

    Raises:
        UserError: One does.
    """
    plain = Preprocessing(1, (1, 1), (0.0,), (1.0,))
    asked = [name for name, value in zip(("image_size", "channels", "transform"), geometry, strict=True) if value]
    asked += [name for name in ("mean", "std") if common[name] != "auto"]
    asked += [
        name for name in ("resize", "resize_to", "interpolation", "orient", "pixel_range")
        if common[name] != getattr(plain, name)
    ]  # fmt: skip
    if asked:
        raise UserError(
            f"The dataset gives tensors of floats, which are taken as they are, but {', '.join(asked)} would prepare "
            "them again. Leave these options out, or give the images as uint8 or Pillow's, without a transform."
        )
