"""CIFAR and MNIST from small archives in the publishers' formats, downloaded from a server of the test's own."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import shutil
import socket
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100, MNIST

from qexp.data import download
from qexp.data.cifar import CifarData
from qexp.data.mnist import MnistData
from qexp.types import UserError

rng = np.random.default_rng(0)


class Server(ThreadingHTTPServer):
    """Serves a folder and remembers what was asked for."""

    def __init__(self, folder: Path):
        self.folder, self.asked = folder, list[str]()
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_port}/"


class Handler(SimpleHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        self.server.asked.append(self.path)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "served").mkdir()
    with Server(tmp_path / "served") as running:
        threading.Thread(target=running.serve_forever, args=[0.01], daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


def nobody() -> str:
    """A URL where no one listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/"


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


class Published:
    """A small CIFAR: images[N,32,32,3] and labels[N] by file, and the archive of them."""

    def __init__(self, classes: int):
        self.classes, self.kind = classes, CIFAR10 if classes == 10 else CIFAR100
        key = "labels" if classes == 10 else "fine_labels"
        files = [name for name, _ in self.kind.train_list + self.kind.test_list]
        self.content = {
            name: (rng.integers(256, size=(2 * classes, 32, 32, 3), dtype=np.uint8), rng.permutation(2 * classes) % classes)
            for name in files
        }
        self.names = [f"thing {number}" for number in range(classes)]
        self.pickled = {name: self._pickle(images, {key: labels.tolist()}) for name, (images, labels) in self.content.items()}
        self.pickled[self.kind.meta["filename"]] = pickle.dumps({self.kind.meta["key"]: self.names, "coarse_label_names": ["x"]}, 2)
        self.archive = self._packed()

    @staticmethod
    def _pickle(images: np.ndarray, labels: dict[str, list[int]]) -> bytes:
        # As published: a row is the red plane, the green one, the blue one; CIFAR-100 has coarse labels too.
        rows = images.transpose(0, 3, 1, 2).reshape(len(images), 3072)
        return pickle.dumps({"data": rows, "coarse_labels": [0] * len(images), "batch_label": "a batch", **labels}, 2)

    def _packed(self) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as tar:
            for name, content in self.pickled.items():
                member = tarfile.TarInfo(f"{self.kind.base_folder}/{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return stream.getvalue()

    def offer(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make torchvision believe that this is the CIFAR there is, to be had below `url`."""
        sums = {name: md5(content) for name, content in self.pickled.items()}
        for attribute in ("train_list", "test_list"):
            monkeypatch.setattr(self.kind, attribute, [[name, sums[name]] for name, _ in getattr(self.kind, attribute)])
        monkeypatch.setattr(self.kind, "meta", {**self.kind.meta, "md5": sums[self.kind.meta["filename"]]})
        monkeypatch.setattr(self.kind, "tgz_md5", md5(self.archive))
        monkeypatch.setattr(self.kind, "url", url + self.kind.filename)

    def expected(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        files = [self.content[name] for name, _ in (self.kind.train_list if part == "train" else self.kind.test_list)]
        return np.concatenate([images for images, _ in files]), np.concatenate([labels for _, labels in files])


@pytest.fixture(params=[10, 100])
def published(request: pytest.FixtureRequest, server: Server, monkeypatch: pytest.MonkeyPatch) -> Published:
    made = Published(request.param)
    (server.folder / made.kind.filename).write_bytes(made.archive)
    made.offer(server.url, monkeypatch)
    return made


def cifar(published: Published, root: Path, cache_dir: str, **options: Any) -> CifarData:
    common = {"name": f"cifar{published.classes}", "image_size": 32, "channels": 3, "cache_dir": cache_dir, **options}
    return CifarData(classes=published.classes, root=str(root), **common)


def check(data: CifarData, published: Published) -> None:
    assert data.open().class_names == tuple(published.names)
    for part in ("train", "test"):
        images, labels = published.expected(part)
        assert np.array_equal(data.splits[part].images, images) and np.array_equal(data.splits[part].labels, labels)


def test_cifar_is_downloaded_once_and_then_read_from_the_cache(published: Published, server: Server, root: Path, cache_dir: str) -> None:
    check(cifar(published, root, cache_dir), published)
    assert (root / published.kind.filename).read_bytes() == published.archive
    assert [p.name for p in root.iterdir()] == [published.kind.filename]
    asked = len(server.asked)
    check(cifar(published, root, cache_dir + "2"), published)  # from the archive
    shutil.rmtree(root)
    check(cifar(published, root, cache_dir), published)
    assert len(server.asked) == asked


def test_cifar_resized_and_grey(published: Published, root: Path, cache_dir: str) -> None:
    data = cifar(published, root, cache_dir, image_size=20, channels=1)
    data.open()
    image = Image.fromarray(published.expected("test")[0][3]).convert("L").resize((20, 20), Image.Resampling.BILINEAR)
    assert np.array_equal(data.splits["test"].images[3, ..., 0], np.asarray(image))


def test_cifar_already_unpacked_needs_no_archive(published: Published, server: Server, root: Path, cache_dir: str) -> None:
    folder = root / published.kind.base_folder
    folder.mkdir(parents=True)
    for name, content in published.pickled.items():
        (folder / name).write_bytes(content)
    check(cifar(published, root, cache_dir), published)
    assert not server.asked
    (folder / "test_batch" if published.classes == 10 else folder / "test").write_bytes(b"damaged, so the archive is needed")
    check(cifar(published, root, cache_dir + "2"), published)
    assert server.asked


def test_damaged_archive_is_named_and_never_used(published: Published, server: Server, root: Path, cache_dir: str) -> None:
    file = root / published.kind.filename
    root.mkdir()
    file.write_bytes(published.archive[:-1])
    with pytest.raises(UserError) as caught:
        cifar(published, root, cache_dir).open()
    for part in (str(file), md5(published.archive), md5(published.archive[:-1]), "damaged", "Remove it"):
        assert part in str(caught.value)
    assert not server.asked and file.exists()
    file.unlink()
    check(cifar(published, root, cache_dir), published)


def test_damaged_download_leaves_nothing(published: Published, server: Server, root: Path, cache_dir: str) -> None:
    (server.folder / published.kind.filename).write_bytes(published.archive[:-1])
    with pytest.raises(UserError) as caught:
        cifar(published, root, cache_dir).open()
    for part in (str(root), published.kind.filename, md5(published.archive), md5(published.archive[:-1]), "damaged"):
        assert part in str(caught.value)
    assert not list(root.iterdir())


def test_offline(published: Published, root: Path, cache_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published.kind, "url", nobody() + published.kind.filename)
    with pytest.raises(UserError) as caught:
        cifar(published, root, cache_dir).open()
    for part in (str(root), published.kind.filename, md5(published.archive), "refused", "data=folder data.root="):
        assert part in str(caught.value)


def test_missing_on_the_server(published: Published, server: Server, root: Path, cache_dir: str) -> None:
    (server.folder / published.kind.filename).unlink()
    with pytest.raises(UserError, match="404"):
        cifar(published, root, cache_dir).open()


def test_server_that_never_answers(published: Published, root: Path, cache_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(published.kind, "url", f"http://127.0.0.1:{silent.getsockname()[1]}/x")
        with pytest.raises(UserError, match="timed out"):
            cifar(published, root, cache_dir).open()
    assert socket.getdefaulttimeout() is None


def test_root_that_cannot_be_written(published: Published, tmp_path: Path, cache_dir: str) -> None:
    (tmp_path / "file").write_text("where a folder should be")
    with pytest.raises(UserError, match=published.kind.filename):
        cifar(published, tmp_path / "file", cache_dir).open()


def test_read_only_root_is_enough(published: Published, root: Path, cache_dir: str) -> None:
    root.mkdir()
    (root / published.kind.filename).write_bytes(published.archive)
    root.chmod(0o500)
    try:
        check(cifar(published, root, cache_dir), published)
    finally:
        root.chmod(0o700)


def test_another_cifar_is_refused(root: Path, cache_dir: str) -> None:
    with pytest.raises(UserError, match="data.classes is 20"):
        CifarData(classes=20, root=str(root), name="x", image_size=32, channels=3, cache_dir=cache_dir)


def packed(values: np.ndarray) -> bytes:
    """A gzipped IDX file of bytes: two zeros, 8 for bytes, the number of dimensions, their sizes in big-endian order."""
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return gzip.compress(header + values.astype(np.uint8).tobytes())


class PublishedMnist:
    """images[N,28,28] and labels[N] by part, and the four files of them."""

    def __init__(self) -> None:
        self.content = {
            p: (rng.integers(256, size=(n, 28, 28), dtype=np.uint8), rng.permutation(n) % 10) for p, n in (("train", 30), ("test", 20))
        }
        names = [name for name, _ in MNIST.resources]
        self.files = dict(zip(names, (packed(array) for part in ("train", "test") for array in self.content[part]), strict=True))

    def offer(self, urls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(MNIST, "mirrors", urls)
        monkeypatch.setattr(MNIST, "resources", [(name, md5(content)) for name, content in self.files.items()])


def mnist(root: Path, cache_dir: str, **options: Any) -> MnistData:
    return MnistData(root=str(root), **{"name": "mnist", "image_size": 28, "channels": 1, "cache_dir": cache_dir, **options})


@pytest.fixture
def published_mnist(server: Server, monkeypatch: pytest.MonkeyPatch) -> PublishedMnist:
    made = PublishedMnist()
    for name, content in made.files.items():
        (server.folder / name).write_bytes(content)
    made.offer([nobody(), server.url], monkeypatch)
    return made


def test_mnist_is_downloaded_from_the_second_mirror_and_kept(
    published_mnist: PublishedMnist, server: Server, root: Path, cache_dir: str
) -> None:
    data = mnist(root, cache_dir)
    assert data.open().class_names == tuple("0123456789")
    for part, (images, labels) in published_mnist.content.items():
        assert np.array_equal(data.splits[part].images, images[..., None]) and np.array_equal(data.splits[part].labels, labels)
    assert {p.name: p.read_bytes() for p in (root / "MNIST/raw").iterdir()} == published_mnist.files
    asked = len(server.asked)
    assert mnist(root, cache_dir + "2").open() == data.spec
    shutil.rmtree(root)
    assert mnist(root, cache_dir).open() == data.spec and len(server.asked) == asked


def test_mnist_resized_in_three_channels(published_mnist: PublishedMnist, root: Path, cache_dir: str) -> None:
    data = mnist(root, cache_dir, image_size=32, channels=3)
    data.open()
    image = Image.fromarray(published_mnist.content["train"][0][5]).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(data.splits["train"].images[5], np.asarray(image)[..., None].repeat(3, 2))


def test_mnist_damaged_file_is_named(published_mnist: PublishedMnist, root: Path, cache_dir: str) -> None:
    mnist(root, cache_dir + "2").open()
    file = root / "MNIST/raw/t10k-images-idx3-ubyte.gz"
    file.write_bytes(b"damaged")
    with pytest.raises(UserError) as caught:
        mnist(root, cache_dir).open()
    assert str(file) in str(caught.value) and md5(published_mnist.files[file.name]) in str(caught.value)


def test_mnist_unpacked_files_without_checksum_are_not_trusted(published_mnist: PublishedMnist, root: Path, cache_dir: str) -> None:
    mnist(root, cache_dir).open()
    other = packed(np.zeros((20, 28, 28)))
    (root / "MNIST/raw/t10k-images-idx3-ubyte").write_bytes(gzip.decompress(other))
    data = mnist(root, cache_dir + "2")
    data.open()
    assert np.array_equal(data.splits["test"].images[..., 0], published_mnist.content["test"][0])


def test_mnist_offline_lists_every_missing_file(
    published_mnist: PublishedMnist, root: Path, cache_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    published_mnist.offer([nobody()], monkeypatch)
    (root / "MNIST/raw").mkdir(parents=True)
    first, *missing = published_mnist.files
    (root / "MNIST/raw" / first).write_bytes(published_mnist.files[first])
    with pytest.raises(UserError) as caught:
        mnist(root, cache_dir).open()
    assert str(root / "MNIST/raw") in str(caught.value) and "data=folder" in str(caught.value)
    assert all(f"{name} (MD5 {md5(published_mnist.files[name])})" in str(caught.value) for name in missing)
    assert first not in str(caught.value)


def test_no_room_to_unpack(published_mnist: PublishedMnist, root: Path, cache_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("torchvision.datasets.utils.extract_archive", full)
    with pytest.raises(UserError, match="Cannot unpack .*train-images.*No space left.*TMPDIR"):
        mnist(root, cache_dir).open()
