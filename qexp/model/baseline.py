"""A trained network on disk: a folder of `model.safetensors` and `manifest.json`, found again by model and dataset."""

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
from qexp.types import DataSpec, UserError

PACKAGED = Path(__file__).parents[1] / "baselines"
FORMAT = 1
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Baseline:
    """folder: where it lies; metrics: fractions by name (val_top1, test_top1, ...); created: ISO 8601, UTC."""

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
        """Errors: UserError where the weights are not those that the manifest was written for."""
        if not self.weights.is_file() or file_digest(self.weights) != self.weights_digest:
            raise UserError(
                f"The weights in {self.folder} are missing or damaged (their digest differs). Train again: {self.command}"
            )

    @classmethod
    def read(cls, folder: Path) -> Baseline:
        """Errors: UserError where the folder has no readable manifest."""
        manifest = folder / "manifest.json"
        try:
            values = json.loads(manifest.read_text())
            if values.pop("format", None) != FORMAT:
                raise ValueError("it was written by another program or version")
            return cls(folder=folder, **{**values, "data": DataSpec.from_json(values["data"])})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{manifest} is no manifest of a baseline: {error}. Give a folder that train.py wrote."
            ) from error

    def write(self, weights: dict[str, Tensor]) -> Baseline:
        """Write weights, then the manifest: a folder with a manifest is whole. Returns what was written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # Copies, because safetensors refuses tensors that share memory (tied weights).
        save_file(
            {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()}, self.weights
        )
        values = {**asdict(self), "format": FORMAT, "weights_digest": file_digest(self.weights)}
        del values["folder"]
        write_json(self.folder / "manifest.json", values)
        return Baseline.read(self.folder)


def weights_file(path: str | Path) -> Path:
    """The file of weights that a user names: itself, or the one in a baseline's folder."""
    return Path(path) / WEIGHTS if Path(path).is_dir() else Path(path)


def find_baseline(root: Path, model: str, data: str, seed: int) -> Baseline | None:
    """The newest baseline of this model and dataset id below `root`, of those trained with this seed if there are any; or the one that
    comes with qexp; or None."""
    for place in (root, PACKAGED):
        found = [b for b in _baselines(place) if b.model["id"] == model and b.data.name == data]
        if found:
            return max(found, key=lambda baseline: (baseline.seed == seed, baseline.created))
    return None


def _baselines(root: Path) -> Iterator[Baseline]:
    for manifest in sorted(root.glob("*/manifest.json")):
        yield Baseline.read(manifest.parent)


def check_space(folder: Path, network: nn.Module) -> None:
    """Errors: UserError where `folder` cannot be written to, or has no space for two checkpoints, one more in the making and the result."""
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
