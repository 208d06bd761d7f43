"""A trained network on disk: a folder with `model.safetensors` and `manifest.json`, found by model and dataset."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from qexp.files import file_digest, write_json
from qexp.types import DataSpec, UserError, other_version

PACKAGED = Path(__file__).parents[1] / "baselines"
FORMAT = 1
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Baseline:
    """A trained network, and how it was trained.

    Attributes:
        folder: Folder that holds it.
        model: Config of the model.
        data: Dataset that it was trained on.
        recipe: Config of the recipe.
        seed: Seed of the training.
        metrics: Fractions by name (val_top1, test_top1, ...).
        created: When the training ended, in ISO 8601 and UTC.
        command: Command that trained it.
        seconds: How long the training took.
        versions: Versions of Python and of packages.
        weights_digest: SHA-256 (hex) of the file of weights.
    """

    folder: Path
    model: dict[str, Any]
    data: DataSpec
    recipe: dict[str, Any]
    seed: int
    metrics: dict[str, float]
    created: str
    command: str
    seconds: float
    versions: dict[str, str]
    weights_digest: str = ""

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS

    def check(self) -> None:
        """Check that the weights are those that the manifest was written for.

        Raises:
            UserError: They are not, or are missing.
        """
        if not self.weights.is_file() or file_digest(self.weights) != self.weights_digest:
            raise UserError(
                f"The weights in {self.folder} are missing or damaged (their digest differs). "
                f"Train again: {self.command}"
            )

    @classmethod
    def read(cls, folder: Path) -> Baseline:
        """Read a baseline from its folder.

        Raises:
            UserError: The folder has no readable manifest.
        """
        manifest = folder / "manifest.json"
        versions = None
        try:
            values = json.loads(manifest.read_text())
            versions = values.get("versions")
            if values.pop("format", None) != FORMAT:
                raise ValueError("it was written by another program or version")
            return cls(folder=folder, **{**values, "data": DataSpec.from_json(values["data"])})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{manifest} is no manifest of a baseline: {error}.{other_version(versions)} "
                "Give a folder that train.py wrote."
            ) from error

    def write(self, weights: dict[str, Tensor]) -> Baseline:
        """Write the weights and then the manifest, so that a folder with a manifest is complete.

        Args:
            weights: State dict of the network.

        Returns:
            The baseline as it is on disk, with the digest of its weights.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        # These are copies because safetensors refuses tensors that share memory (tied weights).
        save_file(
            {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()}, self.weights
        )
        values = {**asdict(self), "format": FORMAT, "weights_digest": file_digest(self.weights)}
        del values["folder"]
        write_json(self.folder / "manifest.json", values)
        return Baseline.read(self.folder)


def weights_file(path: str | Path) -> Path:
    """The file of weights at a path that a user gave, which is the file itself or a baseline's folder."""
    return Path(path) / WEIGHTS if Path(path).is_dir() else Path(path)


def find_baseline(root: Path, model: str, data: str, seed: int) -> Baseline | None:
    """Find the newest baseline of a model and dataset, preferring those that were trained with `seed`.

    Args:
        root: Folder with the folders of baselines. If it has none that fits, one that comes with qexp is taken.
        model: Id of the model.
        data: Name of the dataset.
        seed: Seed of the training.

    Returns:
        The baseline, or None if there is none.
    """
    for place in (root, PACKAGED):
        found = [b for b in _baselines(place) if b.model["id"] == model and b.data.name == data]
        if found:
            return max(found, key=lambda baseline: (baseline.seed == seed, baseline.created))
    return None


def _baselines(root: Path) -> Iterator[Baseline]:
    for manifest in sorted(root.glob("*/manifest.json")):
        yield Baseline.read(manifest.parent)


def check_space(folder: Path, network: nn.Module) -> None:
    """Check that a training of the network can write its files.

    Raises:
        UserError: The folder cannot be written to, or has no space for two checkpoints, a third one that is being
            written, and the result.
    """
    needed = 7 * sum(t.numel() * t.element_size() for t in network.state_dict().values()) + 10_000_000
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(
            f"Cannot write to {folder}: {error.strerror}. Choose another folder with outputs=FOLDER."
        ) from error
    if free < needed:
        raise UserError(
            f"{folder} has {free / 1e6:.0f} MB free, and this training needs up to {needed / 1e6:.0f} MB there. "
            "Free some space or choose another folder with outputs=FOLDER."
        )
