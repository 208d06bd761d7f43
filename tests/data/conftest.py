"""Small datasets that the tests make themselves, and the real ones where QEXP_DATA is set."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qexp.data.folder import FolderData
from tests import configured
from tests.data.publisher import Server


@pytest.fixture
def cache_dir(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def write_images(
    root: Path, classes: tuple[str, ...] = ("cat", "dog"), train: int = 10, test: int = 4, size: int = 8
) -> Path:
    """root/{train,test}/CLASS/N.png with random colour pixels."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for name in classes:
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(rng.integers(256, size=(size, size, 3), dtype=np.uint8)).save(
                    folder / f"{number:03}.png"
                )
    return root


@pytest.fixture
def images_root(tmp_path: Path) -> Path:
    return write_images(tmp_path / "pets")


@pytest.fixture
def make_folder(images_root: Path, cache_dir: str) -> Callable[..., FolderData]:
    """A FolderData of 2 classes, 10 + 4 images of 8x8 pixels each, with options changed as asked."""

    def make(**options: Any) -> FolderData:
        defaults = {
            "root": str(images_root),
            "image_size": 8,
            "channels": 3,
            "cache_dir": cache_dir,
            "augmentation": {"padding": 2},
        }
        return configured.data("folder", **{**defaults, **options})

    return make


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "served").mkdir()
    with Server(tmp_path / "served") as running:
        threading.Thread(target=running.serve_forever, args=[0.01], daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    return tmp_path / "data"
