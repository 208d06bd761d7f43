"""MNIST from small files in the publisher's format, downloaded from a server of the test's own."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qexp.data.mnist import MnistData
from qexp.types import UserError
from tests import configured
from tests.data.publisher import PublishedMnist, Server, md5, nobody, packed
from tests.data.support import every


def mnist(data_root: Path, cache_dir: str, **options: Any) -> MnistData:
    return configured.data(
        "mnist",
        root=str(data_root),
        **{"name": "mnist", "image_size": 28, "channels": 1, "cache_dir": cache_dir, **options},
    )


@pytest.fixture
def published(server: Server, monkeypatch: pytest.MonkeyPatch) -> PublishedMnist:
    made = PublishedMnist()
    for name, content in made.files.items():
        (server.folder / name).write_bytes(content)
    made.offer([nobody(), server.url], monkeypatch)
    return made


def test_mnist_is_downloaded_from_the_second_mirror_and_kept(
    published: PublishedMnist, server: Server, data_root: Path, cache_dir: str
) -> None:
    data = mnist(data_root, cache_dir)
    assert data.open().class_names == tuple("0123456789")
    for part, (images, labels) in published.content.items():
        assert np.array_equal(every(data, part), images[..., None]) and np.array_equal(data.splits[part].labels, labels)
    assert {p.name: p.read_bytes() for p in (data_root / "MNIST/raw").iterdir()} == published.files
    asked = len(server.asked)
    assert mnist(data_root, cache_dir + "2").open() == data.spec
    shutil.rmtree(data_root)
    assert mnist(data_root, cache_dir).open() == data.spec and len(server.asked) == asked


def test_mnist_resized_in_three_channels(published: PublishedMnist, data_root: Path, cache_dir: str) -> None:
    data = mnist(data_root, cache_dir, image_size=32, channels=3)
    data.open()
    image = Image.fromarray(published.content["train"][0][5]).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(data.pixels("train", np.array([5]))[0], np.asarray(image)[..., None].repeat(3, 2))


def test_mnist_damaged_file_is_named(published: PublishedMnist, data_root: Path, cache_dir: str) -> None:
    mnist(data_root, cache_dir + "2").open()
    file = data_root / "MNIST/raw/t10k-images-idx3-ubyte.gz"
    file.write_bytes(b"damaged")
    with pytest.raises(UserError) as caught:
        mnist(data_root, cache_dir).open()
    assert str(file) in str(caught.value) and md5(published.files[file.name]) in str(caught.value)


def test_mnist_unpacked_files_without_checksum_are_not_trusted(
    published: PublishedMnist, data_root: Path, cache_dir: str
) -> None:
    mnist(data_root, cache_dir).open()
    other = packed(np.zeros((20, 28, 28)))
    (data_root / "MNIST/raw/t10k-images-idx3-ubyte").write_bytes(gzip.decompress(other))
    data = mnist(data_root, cache_dir + "2")
    data.open()
    assert np.array_equal(every(data, "test")[..., 0], published.content["test"][0])


def test_mnist_offline_lists_every_missing_file(
    published: PublishedMnist, data_root: Path, cache_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    published.offer([nobody()], monkeypatch)
    (data_root / "MNIST/raw").mkdir(parents=True)
    first, *missing = published.files
    (data_root / "MNIST/raw" / first).write_bytes(published.files[first])
    with pytest.raises(UserError) as caught:
        mnist(data_root, cache_dir).open()
    assert str(data_root / "MNIST/raw") in str(caught.value) and "data=folder" in str(caught.value)
    assert all(f"{name} (MD5 {md5(published.files[name])})" in str(caught.value) for name in missing)
    assert first not in str(caught.value)


def test_no_room_to_unpack(
    published: PublishedMnist, data_root: Path, cache_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("torchvision.datasets.utils.extract_archive", full)
    with pytest.raises(UserError, match="Cannot unpack .*train-images.*No space left.*TMPDIR"):
        mnist(data_root, cache_dir).open()
