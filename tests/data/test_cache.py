"""Images are decoded once, found again by their content, and decoded again when the cache is damaged.

Where it cannot be written, a message says so.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qexp.data import cache
from qexp.data.cache import Decoded, Split
from qexp.data.folder import FolderData
from qexp.types import UserError

Make = Callable[..., FolderData]


def some_images() -> Decoded:
    images = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 1)
    return Decoded(("a", "b"), {part: Split(images, np.array([0, 1], np.int32)) for part in cache.PARTS})


def same(one: Decoded, other: Decoded) -> bool:
    arrays = [(one.splits[p], other.splits[p]) for p in cache.PARTS]
    return one.class_names == other.class_names and all(
        np.array_equal(a.images, b.images) and np.array_equal(a.labels, b.labels) for a, b in arrays
    )


def never() -> Decoded:
    raise AssertionError("decoded again")


def test_decoded_once_and_memory_mapped(tmp_path: Path) -> None:
    built = cache.open_or_build(tmp_path / "x", some_images)
    again = cache.open_or_build(tmp_path / "x", never)
    assert same(built, some_images()) and same(again, some_images())
    assert isinstance(again.splits["train"].images, np.memmap) and again.splits["train"].labels.dtype == np.int64


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: truncate(folder / "train_images.npy"),
        lambda folder: truncate(folder / "test_labels.npy"),
        lambda folder: os.truncate(folder / "test_images.npy", 0),
        lambda folder: (folder / "train_labels.npy").write_bytes(b"rubbish, and not a little of it"),
        lambda folder: (folder / "train_images.npy").unlink(),
        lambda folder: (folder / "classes.json").write_text('["a",'),
        lambda folder: [f.unlink() for f in folder.iterdir()],
    ],
)
def test_damaged_folder_is_made_again(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    folder = tmp_path / "x"
    cache.open_or_build(folder, some_images)
    damage(folder)
    assert same(cache.open_or_build(folder, some_images), some_images())
    assert same(cache.open_or_build(folder, never), some_images())


def test_failed_decoding_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        cache.open_or_build(tmp_path / "x", never)
    assert [p.name for p in tmp_path.iterdir()] in ([], ["x.lock"])
    assert same(cache.open_or_build(tmp_path / "x", some_images), some_images())


def test_jobs_that_start_at_once_decode_once(tmp_path: Path) -> None:
    calls = []

    def slowly() -> Decoded:
        calls.append(1)
        time.sleep(0.2)
        return some_images()

    found: list[Decoded] = []
    jobs = [
        threading.Thread(target=lambda: found.append(cache.open_or_build(tmp_path / "x", slowly))) for _ in range(4)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert len(calls) == 1 and len(found) == 4 and all(same(f, some_images()) for f in found)


def test_place_that_cannot_be_written(tmp_path: Path, make_folder: Make) -> None:
    (tmp_path / "file").write_text("where a folder should be")
    with pytest.raises(UserError, match=r"Cannot write .*file.*outputs="):
        cache.open_or_build(tmp_path / "file" / "data" / "x", some_images)
    with pytest.raises(UserError, match=r"Cannot write .*file.*outputs="):
        make_folder(cache_dir=str(tmp_path / "file")).open()


def test_read_only_folder_is_enough_once_it_is_filled(tmp_path: Path) -> None:
    cache.open_or_build(tmp_path / "x", some_images)
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this user may write everywhere")
        assert same(cache.open_or_build(tmp_path / "x", never), some_images())
        with pytest.raises(UserError, match="Cannot write .*Permission denied"):
            cache.open_or_build(tmp_path / "y", some_images)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), OSError("18 requested and 0 written")]
)
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(UserError, match=rf"Cannot write {tmp_path / 'x'}: ({error.strerror}|18 requested)"):
        cache.open_or_build(tmp_path / "x", some_images)
    assert [p.name for p in tmp_path.iterdir()] in ([], ["x.lock"])


def test_dataset_is_decoded_once(make_folder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_folder()
    spec = first.open()
    monkeypatch.setattr(FolderData, "decode", lambda self: never())
    second = make_folder(seed=3)
    assert second.open() == spec and second.open() is second.open()
    assert np.array_equal(first.splits["train"].images, second.splits["train"].images)
    with pytest.raises(AssertionError, match="decoded again"):
        make_folder(image_size=9).open()


def test_digest_follows_the_bytes_the_names_and_the_shape(make_folder: Make, images_root: Path) -> None:
    digests = [make_folder().open().digest]
    file = images_root / "train/cat/000.png"
    before, content = file.stat(), file.read_bytes()
    file.write_bytes((images_root / "train/cat/001.png").read_bytes())
    digests.append(make_folder().open().digest)
    file.write_bytes(content)
    assert make_folder().open().digest == digests[0]
    os.utime(file, ns=(0, 0))  # other times, same bytes
    assert make_folder().open().digest == digests[0]
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    file.rename(file.with_name("zzz.png"))
    digests.append(make_folder().open().digest)
    digests += [make_folder(channels=1).open().digest, make_folder(image_size=6).open().digest]
    assert len(set(digests)) == 5


def test_digest_notices_bytes_changed_under_the_same_size_and_time(make_folder: Make, images_root: Path) -> None:
    file = images_root / "train/cat/000.png"
    before, content = file.stat(), bytearray(file.read_bytes())
    digest = make_folder().source_digest()
    content[-20] ^= 1
    time.sleep(0.02)  # coarser than the clock of some file systems
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert make_folder().source_digest() != digest


def test_digest_is_kept_and_a_damaged_note_of_it_is_no_harm(
    make_folder: Make, cache_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = make_folder().source_digest()
    (note,) = Path(cache_dir, "digests").iterdir()
    with monkeypatch.context() as patched:
        patched.setattr(cache, "_bytes", lambda file: pytest.fail("read again"))
        assert make_folder().source_digest() == digest
    for damaged in ("", "{", "[]", "{}"):
        note.write_text(damaged)
        assert make_folder().source_digest() == digest
