"""A publisher of small CIFARs and MNISTs, in the original formats, with a server of its own."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import socket
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, CIFAR100, MNIST

rng = np.random.default_rng(0)


class Server(ThreadingHTTPServer):
    """Serves a folder and remembers what was asked for."""

    def __init__(self, folder: Path):
        self.folder, self.asked = folder, list[str]()
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, *_: Any) -> None:
        """Nothing to tell: clients look at the headers and hang up."""


class Handler(SimpleHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        self.server.asked.append(self.path)


def nobody() -> str:
    """A URL where no one listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/"


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


class PublishedCifar:
    """A small CIFAR: images[N,32,32,3] and labels[N] by file, and the archive of them."""

    def __init__(self, classes: int):
        self.classes, self.kind = classes, CIFAR10 if classes == 10 else CIFAR100
        key = "labels" if classes == 10 else "fine_labels"
        files = [name for name, _ in self.kind.train_list + self.kind.test_list]
        self.content = {
            name: (
                rng.integers(256, size=(2 * classes, 32, 32, 3), dtype=np.uint8),
                rng.permutation(2 * classes) % classes,
            )
            for name in files
        }
        self.names = [f"thing {number}" for number in range(classes)]
        self.pickled = {
            name: self._pickle(images, {key: labels.tolist()}) for name, (images, labels) in self.content.items()
        }
        self.pickled[self.kind.meta["filename"]] = pickle.dumps(
            {self.kind.meta["key"]: self.names, "coarse_label_names": ["x"]}, 2
        )
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


def packed(values: np.ndarray) -> bytes:
    """Return a gzipped IDX file of bytes.

    It begins with two zeros, 8 for bytes, the number of dimensions, and their sizes in big-endian order.
    """
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return gzip.compress(header + values.astype(np.uint8).tobytes())


class PublishedMnist:
    """images[N,28,28] and labels[N] by part, and the four files of them."""

    def __init__(self) -> None:
        self.content = {
            p: (rng.integers(256, size=(n, 28, 28), dtype=np.uint8), rng.permutation(n) % 10)
            for p, n in (("train", 30), ("test", 20))
        }
        names = [name for name, _ in MNIST.resources]
        self.files = dict(
            zip(names, (packed(array) for part in ("train", "test") for array in self.content[part]), strict=True)
        )

    def offer(self, urls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(MNIST, "mirrors", urls)
        monkeypatch.setattr(MNIST, "resources", [(name, md5(content)) for name, content in self.files.items()])
