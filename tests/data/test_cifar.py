"""CIFAR from small archives in the publisher's format, downloaded from a server of the test's own."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qexp.data import download
from qexp.data.cifar import CifarData
from qexp.types import UserError
from tests import configured
from tests.data.publisher import PublishedCifar, Server, md5, nobody
from tests.data.support import every


@pytest.fixture(params=[10, 100])
def published(request: pytest.FixtureRequest, server: Server, monkeypatch: pytest.MonkeyPatch) -> PublishedCifar:
    made = PublishedCifar(request.param)
    (server.folder / made.kind.filename).write_bytes(made.archive)
    made.offer(server.url, monkeypatch)
    return made


def cifar(published: PublishedCifar, data_root: Path, cache_dir: str, **options: Any) -> CifarData:
    common = {"name": f"cifar{published.classes}", "image_size": 32, "channels": 3, "cache_dir": cache_dir, **options}
    return configured.data("cifar10", classes=published.classes, root=str(data_root), **common)


def check(data: CifarData, published: PublishedCifar) -> None:
    assert data.open().class_names == tuple(published.names)
    for part in ("train", "test"):
        images, labels = published.expected(part)
        assert np.array_equal(every(data, part), images) and np.array_equal(data.splits[part].labels, labels)


def test_cifar_is_downloaded_once_and_then_read_from_the_cache(
    published: PublishedCifar, server: Server, data_root: Path, cache_dir: str
) -> None:
    check(cifar(published, data_root, cache_dir), published)
    assert (data_root / published.kind.filename).read_bytes() == published.archive
    assert [p.name for p in data_root.iterdir()] == [published.kind.filename]
    asked = len(server.asked)
    check(cifar(published, data_root, cache_dir + "2"), published)  # from the archive
    shutil.rmtree(data_root)
    check(cifar(published, data_root, cache_dir), published)
    assert len(server.asked) == asked


def test_cifar_resized_and_grey(published: PublishedCifar, data_root: Path, cache_dir: str) -> None:
    data = cifar(published, data_root, cache_dir, image_size=20, channels=1)
    data.open()
    image = Image.fromarray(published.expected("test")[0][3]).convert("L").resize((20, 20), Image.Resampling.BILINEAR)
    assert np.array_equal(every(data, "test")[3, ..., 0], np.asarray(image))


def test_cifar_already_unpacked_needs_no_archive(
    published: PublishedCifar, server: Server, data_root: Path, cache_dir: str
) -> None:
    folder = data_root / published.kind.base_folder
    folder.mkdir(parents=True)
    for name, content in published.pickled.items():
        (folder / name).write_bytes(content)
    check(cifar(published, data_root, cache_dir), published)
    assert not server.asked
    (folder / "test_batch" if published.classes == 10 else folder / "test").write_bytes(
        b"damaged, so the archive is needed"
    )
    check(cifar(published, data_root, cache_dir + "2"), published)
    assert server.asked


def test_damaged_archive_is_named_and_never_used(
    published: PublishedCifar, server: Server, data_root: Path, cache_dir: str
) -> None:
    file = data_root / published.kind.filename
    data_root.mkdir()
    file.write_bytes(published.archive[:-1])
    with pytest.raises(UserError) as caught:
        cifar(published, data_root, cache_dir).open()
    for part in (str(file), md5(published.archive), md5(published.archive[:-1]), "damaged", "Remove it"):
        assert part in str(caught.value)
    assert not server.asked and file.exists()
    file.unlink()
    check(cifar(published, data_root, cache_dir), published)


def test_damaged_download_leaves_nothing(
    published: PublishedCifar, server: Server, data_root: Path, cache_dir: str
) -> None:
    (server.folder / published.kind.filename).write_bytes(published.archive[:-1])
    with pytest.raises(UserError) as caught:
        cifar(published, data_root, cache_dir).open()
    for part in (
        str(data_root),
        published.kind.filename,
        md5(published.archive),
        md5(published.archive[:-1]),
        "damaged",
    ):
        assert part in str(caught.value)
    assert not list(data_root.iterdir())


def test_offline(published: PublishedCifar, data_root: Path, cache_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published.kind, "url", nobody() + published.kind.filename)
    with pytest.raises(UserError) as caught:
        cifar(published, data_root, cache_dir).open()
    for part in (str(data_root), published.kind.filename, md5(published.archive), "refused", "data=folder data.root="):
        assert part in str(caught.value)


def test_missing_on_the_server(published: PublishedCifar, server: Server, data_root: Path, cache_dir: str) -> None:
    (server.folder / published.kind.filename).unlink()
    with pytest.raises(UserError, match="404"):
        cifar(published, data_root, cache_dir).open()


def test_server_that_never_answers(
    published: PublishedCifar, data_root: Path, cache_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(published.kind, "url", f"http://127.0.0.1:{silent.getsockname()[1]}/x")
        with pytest.raises(UserError, match="timed out"):
            cifar(published, data_root, cache_dir).open()
    assert socket.getdefaulttimeout() is None


def test_root_that_cannot_be_written(published: PublishedCifar, tmp_path: Path, cache_dir: str) -> None:
    (tmp_path / "file").write_text("where a folder should be")
    with pytest.raises(UserError, match=published.kind.filename):
        cifar(published, tmp_path / "file", cache_dir).open()


def test_read_only_root_is_enough(published: PublishedCifar, data_root: Path, cache_dir: str) -> None:
    data_root.mkdir()
    (data_root / published.kind.filename).write_bytes(published.archive)
    data_root.chmod(0o500)
    try:
        check(cifar(published, data_root, cache_dir), published)
    finally:
        data_root.chmod(0o700)


def test_another_cifar_is_refused(data_root: Path, cache_dir: str) -> None:
    with pytest.raises(UserError, match="data.classes is 20"):
        configured.data(
            "cifar10", classes=20, root=str(data_root), name="x", image_size=32, channels=3, cache_dir=cache_dir
        )
