"""Images are decoded once, when they are used, found again, and decoded again when the store is damaged.

Where it cannot be written, a message says so.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qexp.data.folder import FolderData
from qexp.data.store import Listing, Split, open_or_make
from qexp.types import UserError
from tests.data.support import every

Make = Callable[..., FolderData]
IMAGES = np.arange(6 * 3 * 3, dtype=np.uint8).reshape(6, 3, 3, 1)
LABELS = np.array([0, 1, 0, 1, 0, 1], np.int32)


def listing() -> Listing:
    return Listing(("a", "b"), {"train": LABELS, "test": LABELS[:2]})


def opened(folder: Path, listing: Callable[[], Listing] = listing) -> Split:
    return open_or_make(folder, listing, (3, 3, 1), "uint8")[1]["train"]


def never(*_: Any) -> Any:
    raise AssertionError("decoded again")


class Decoder:
    """Decodes IMAGES and remembers which it was asked for."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __call__(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        self.asked.append(indices.tolist())
        return iter(IMAGES[indices])


def at(*indices: int) -> np.ndarray:
    return np.array(indices)


def test_what_is_asked_for_is_decoded_once_and_nothing_else(tmp_path: Path) -> None:
    decode, split = Decoder(), opened(tmp_path / "x")
    assert split.labels.dtype == np.int64 and split.labels.tolist() == LABELS.tolist()
    for indices, expected in ((at(4, 1), [[4, 1]]), (at(1, 2, 4), [[4, 1], [2]]), (at(4), [[4, 1], [2]])):
        assert split.prepare(indices, decode).tolist() == indices.tolist() and decode.asked == expected
        assert np.array_equal(split.read(indices), IMAGES[indices])
    again = opened(tmp_path / "x", never)
    again.prepare(at(2, 1, 4), never)
    assert np.array_equal(again.read(at(2, 1, 4)), IMAGES[[2, 1, 4]])
    assert (tmp_path / "x" / "train_pixels.bin").stat().st_size == 3 * 9  # no space for what nobody asked for


def test_what_was_decoded_before_an_error_is_kept(tmp_path: Path) -> None:
    def fails(indices: np.ndarray) -> Iterator[np.ndarray]:
        yield from IMAGES[indices[:2]]
        raise UserError("broken")

    with pytest.raises(UserError, match="broken"):
        opened(tmp_path / "x").prepare(at(0, 1, 2), fails)
    decode, split = Decoder(), opened(tmp_path / "x")
    split.prepare(at(0, 1, 2), decode)
    assert decode.asked == [[2]] and np.array_equal(split.read(at(0, 1, 2)), IMAGES[:3])


def test_broken_images_are_left_out_and_not_tried_again(tmp_path: Path) -> None:
    def one_is_broken(indices: np.ndarray) -> Iterator[np.ndarray | None]:
        return (None if index == 1 else IMAGES[index] for index in indices)

    assert opened(tmp_path / "x").prepare(at(0, 1, 2), one_is_broken).tolist() == [0, 2]
    split = opened(tmp_path / "x")
    assert split.prepare(at(0, 1, 2), never).tolist() == [0, 2] and split.broken().tolist() == [1]
    assert np.array_equal(split.read(at(0, 2)), IMAGES[[0, 2]])


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: truncate(folder / "train_pixels.bin"),
        lambda folder: truncate(folder / "test_labels.npy"),
        lambda folder: os.truncate(folder / "train_rows.npy", 0),
        lambda folder: os.truncate(folder / "train_pixels.bin", 0),
        lambda folder: (folder / "train_labels.npy").write_bytes(b"rubbish, and not a little of it"),
        lambda folder: (folder / "train_pixels.bin").unlink(),
        lambda folder: (folder / "about.json").write_text('["a",'),
        lambda folder: [f.unlink() for f in folder.iterdir()],
    ],
)
def test_what_is_damaged_is_made_again(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    folder, every_index = tmp_path / "x", np.arange(6)
    opened(folder).prepare(every_index, Decoder())
    damage(folder)
    split, decode = opened(folder), Decoder()
    split.prepare(every_index, decode)
    assert np.array_equal(split.read(every_index), IMAGES) and split.labels.tolist() == LABELS.tolist()
    opened(folder, never).prepare(every_index, never)


def test_failed_listing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        opened(tmp_path / "x", never)
    assert [p.name for p in tmp_path.iterdir()] in ([], ["x-all.lock"])
    assert opened(tmp_path / "x").labels.tolist() == LABELS.tolist()


def test_jobs_that_start_at_once_decode_once(tmp_path: Path) -> None:
    decode = Decoder()

    def slowly(indices: np.ndarray) -> Iterator[np.ndarray]:
        time.sleep(0.2)
        return decode(indices)

    def job() -> None:
        split = opened(tmp_path / "x")
        split.prepare(np.arange(6), slowly)
        found.append(split.read(np.arange(6)))

    found: list[np.ndarray] = []
    jobs = [threading.Thread(target=job) for _ in range(4)]
    for each in jobs:
        each.start()
    for each in jobs:
        each.join()
    assert len(decode.asked) == 1 and len(found) == 4 and all(np.array_equal(f, IMAGES) for f in found)


def test_place_that_cannot_be_written(tmp_path: Path, make_folder: Make) -> None:
    (tmp_path / "file").write_text("where a folder should be")
    with pytest.raises(UserError, match=r"Cannot write .*file.*outputs="):
        opened(tmp_path / "file" / "data" / "x")
    with pytest.raises(UserError, match=r"Cannot write .*file.*outputs="):
        make_folder(cache_dir=str(tmp_path / "file")).open()


def test_read_only_folder_is_enough_once_it_is_filled(tmp_path: Path) -> None:
    opened(tmp_path / "x").prepare(at(0), Decoder())
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this user may write everywhere")
        assert opened(tmp_path / "x", never).prepare(at(0), never).tolist() == [0]
        with pytest.raises(UserError, match="Cannot write .*Permission denied"):
            opened(tmp_path / "y")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), OSError("18 requested and 0 written")]
)
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def full(*_: Any) -> None:
        raise error

    split = opened(tmp_path / "y")
    monkeypatch.setattr(np, "save", full)
    for write in (lambda: opened(tmp_path / "x"), lambda: split.prepare(at(0), Decoder())):
        with pytest.raises(UserError, match=rf"Cannot write {tmp_path}.*: ({error.strerror}|18 requested)"):
            write()
    assert not (tmp_path / "x").exists()


def test_images_are_decoded_when_they_are_used(make_folder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr("qexp.data.folder.read_image", lambda file, how: read.append(str(file)) or np.zeros((8, 8, 3)))
    data = make_folder(calibration_images=3, mean=0, std=1)
    data.open()
    assert not read
    assert len(data.calibration()[:]) == 3 and len(read) == 3 and all("/train/" in file for file in read)
    data.prepare_evaluation("test", 4)
    assert len(read) == 7 and {file.split("/")[-2] for file in read[3:]} == {"cat", "dog"}
    data.prepare_evaluation("test", 4)
    assert len(read) == 7


def test_dataset_is_decoded_once(make_folder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_folder()
    spec, images = first.open(), every(first, "train")
    monkeypatch.setattr(FolderData, "decode", never)
    second = make_folder(seed=3)
    assert second.open() == spec and second.open() is second.open()
    assert np.array_equal(images, every(second, "train"))
    with pytest.raises(AssertionError, match="decoded again"):
        make_folder(image_size=9).open()


def test_digest_follows_names_sizes_and_preparation(make_folder: Make, images_root: Path) -> None:
    digests, decoders = [make_folder().open().digest], [make_folder().open().decoder]
    file = images_root / "train/cat/000.png"
    before = file.stat()
    os.utime(file, ns=(0, 0))  # other times, as a copy of the folder has
    decoders.append(make_folder().open().decoder)
    assert make_folder().open().digest == digests[0]
    file.write_bytes(file.read_bytes() + b" ")
    digests.append(make_folder().open().digest)
    os.truncate(file, before.st_size)
    file.rename(file.with_name("zzz.png"))
    digests.append(make_folder().open().digest)
    digests += [make_folder(channels=1).open().digest, make_folder(image_size=6).open().digest]
    digests += [make_folder(resize="crop").open().digest, make_folder(orient=True).open().digest]
    assert len({*digests}) == 7 and len({*decoders}) == 2
    assert make_folder(mean=0.5).open().digest == make_folder(pixel_range=255).open().digest == digests[2]


def test_bytes_changed_under_the_same_name_and_size_are_decoded_anew(make_folder: Make, images_root: Path) -> None:
    for file in images_root.glob("*/*/*.png"):  # grey, so that all have the same size
        Image.new("L", (8, 8), 10).save(file)
    assert (every(make_folder(mean=0, std=1), "train") == 10).all()
    file = images_root / "train/cat/000.png"
    size = file.stat().st_size
    time.sleep(0.02)  # coarser than the clock of some file systems
    Image.new("L", (8, 8), 20).save(file)
    assert file.stat().st_size == size
    assert (every(make_folder(mean=0, std=1), "train")[0] == 20).all()
