"""Odd image files have the pixels that Pillow gives, and broken ones are named, or left out and counted."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from qexp.data.folder import FolderData
from qexp.types import UserError
from tests.data.conftest import write_images
from tests.data.support import every

Make = Callable[..., FolderData]

rng = np.random.default_rng(2)
colours = rng.integers(256, size=(3, 8, 8, 3), dtype=np.uint8)
frames = [Image.fromarray(frame) for frame in colours]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def replaced(images_root: Path, content: bytes, suffix: str) -> Path:
    """The first training image with other bytes and another suffix."""
    (images_root / "train/cat/000.png").unlink()
    file = images_root / f"train/cat/000{suffix}"
    file.write_bytes(content)
    return file


def png_that_declares(width: int, height: int) -> bytes:
    """A PNG file of 80 bytes, whose header promises more than its data hold."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 10))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".jpg", encoded(frames[0].convert("CMYK"), "jpeg")),
        (".jfif", encoded(frames[0], "jpeg")),
        (".JPEG", encoded(frames[0].convert("L"), "jpeg")),
        (".png", encoded(frames[0].quantize(8), "png")),
        (".gif", encoded(frames[0].quantize(8), "gif")),
        (".webp", encoded(frames[0], "webp", lossless=True)),
        (".bmp", encoded(frames[0], "bmp")),
        (".ppm", encoded(frames[0], "ppm")),
        (".tif", encoded(frames[0].convert("CMYK"), "tiff")),
        (".png", encoded(frames[0].convert("LA"), "png")),
        (".jpg", encoded(frames[0], "png")),
    ],
    ids=["cmyk jpeg", "jfif", "grey jpeg", "palette", "gif", "webp", "bmp", "ppm", "cmyk tiff", "grey with alpha",
         "png called jpg"],
)  # fmt: skip
def test_formats(make_folder: Make, images_root: Path, suffix: str, content: bytes) -> None:
    file = replaced(images_root, content, suffix)
    assert np.array_equal(every(make_folder(), "train")[0], np.asarray(Image.open(file).convert("RGB")))


@pytest.mark.parametrize(("suffix", "kind", "feature"), [(".avif", "avif", "avif"), (".jp2", "jpeg2000", "jpg_2000")])
def test_formats_that_pillow_may_lack(
    make_folder: Make, images_root: Path, suffix: str, kind: str, feature: str
) -> None:
    if not features.check(feature):
        pytest.skip(f"this Pillow does not read {suffix}")
    file = replaced(images_root, encoded(frames[0], kind), suffix)
    assert np.array_equal(every(make_folder(), "train")[0], np.asarray(Image.open(file).convert("RGB")))


@pytest.mark.parametrize(("suffix", "options"), [(".gif", {}), (".webp", {"lossless": True}), (".png", {})])
def test_of_an_animation_the_first_frame_counts(
    make_folder: Make, images_root: Path, suffix: str, options: dict[str, bool]
) -> None:
    shown = [frame.quantize(8) for frame in frames] if suffix == ".gif" else frames
    content = encoded(shown[0], suffix[1:], save_all=True, append_images=shown[1:], duration=50, **options)
    file = replaced(images_root, content, suffix)
    assert Image.open(file).n_frames == 3
    assert np.array_equal(every(make_folder(), "train")[0], np.asarray(shown[0].convert("RGB")))


@pytest.mark.parametrize(
    ("suffix", "content", "why"),
    [
        (".png", png_that_declares(100_000, 100_000), "exceeds limit"),
        (".png", png_that_declares(64, 64), "truncated"),
        (".jpg", encoded(frames[0].convert("CMYK").resize((200, 200)), "jpeg")[:-800], "truncated"),
        (".gif", encoded(frames[0].resize((99, 99)), "gif")[:-2000], "truncated|fewer|bytes"),
        (".webp", encoded(frames[0], "webp")[:60], "cannot|could not|fail"),
        (".jpg", b"", "cannot identify"),
        (".webp", b"<html>404 Not Found</html>", "cannot identify"),
        (".tiff", b"II*\0" + b"\0" * 20, "."),
    ],
    ids=["gigapixels", "no pixels", "cmyk", "gif", "webp", "no bytes", "a page", "tiff without a page"],
)
def test_broken_images_are_named_or_left_out(
    make_folder: Make, images_root: Path, suffix: str, content: bytes, why: str
) -> None:
    file = replaced(images_root, content, suffix)
    with pytest.raises(UserError, match=rf"Cannot read the image {file}: .*({why}).*data\.skip_broken=true"):
        every(make_folder(), "train")
    data = make_folder(skip_broken=True)
    data.prepare_training()
    assert sorted([*data.train_indices, *data.validation_indices]) == [*range(1, 20)]
    assert data.notes() == {"broken images": f"1 left out: {file}"}


def test_broken_test_images_are_counted_too(make_folder: Make, images_root: Path) -> None:
    for name in ("cat/001", "dog/003"):
        (images_root / f"test/{name}.png").write_bytes(b"")
    data = make_folder(skip_broken=True)
    data.prepare_evaluation("test", None)
    assert data.prepare("test", np.arange(8)).tolist() == [0, 2, 3, 4, 5, 6]
    assert data.notes()["broken images"].startswith("2 left out: ") and "dog/003.png" in data.notes()["broken images"]


def test_names_of_classes_in_any_script_and_with_any_character(make_folder: Make, tmp_path: Path) -> None:
    names = ("great white shark", "Mr. Fox.v2", "a=b,c", "日本", "naïve", "[x]{y}", "$HOME", "100%", "été.png")
    root = write_images(tmp_path / "odd names", names, train=2, test=1)
    data = make_folder(root=str(root))
    assert data.open().class_names == tuple(sorted(names)) and data.spec.name == "odd names"
    for label, name in enumerate(sorted(names)):
        file = root / f"test/{name}/000.png"
        assert np.array_equal(data.pixels("test", np.array([label]))[0], np.asarray(Image.open(file)))
    again = make_folder(root=str(root))
    assert again.open() == data.spec


def test_a_class_with_one_image_is_trained_on(make_folder: Make, images_root: Path) -> None:
    for number in range(1, 10):
        (images_root / f"train/cat/{number:03}.png").unlink()
    data = make_folder()
    data.open()
    assert 0 in data.train_indices and data.splits["train"].labels.tolist() == [0] + [1] * 10


@pytest.mark.parametrize("where", ["train/cat/more", "train/loop", "train/cat/deep/er"])
def test_links_in_circles_are_named(make_folder: Make, images_root: Path, where: str) -> None:
    """To its own class, to its part, and to a folder two levels up. A link beside the classes is a class of its own."""
    link = images_root / where
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(images_root / "train")
    with pytest.raises(
        UserError, match=r"is a link to a folder above itself|classes below .* differ: only in train: loop"
    ):
        make_folder().open()
