"""Images of the user have the pixels that Pillow gives, and whatever can be wrong with a folder has its message."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qexp.data.folder import FolderData
from qexp.types import UserError
from tests.data.support import every

Make = Callable[..., FolderData]


def pixels(file: Path, mode: str = "RGB") -> np.ndarray:
    return np.asarray(Image.open(file).convert(mode))


def replace_first(images_root: Path, content: bytes, suffix: str = ".png") -> Path:
    """The first training image with other bytes."""
    (images_root / "train/cat/000.png").unlink()
    file = images_root / f"train/cat/000{suffix}"
    file.write_bytes(content)
    return file


def encoded(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def test_pixels_labels_and_classes_are_those_of_the_files(make_folder: Make, images_root: Path) -> None:
    data = make_folder()
    spec = data.open()
    assert spec.name == "pets" and spec.class_names == ("cat", "dog") and not spec.pretend
    for part, count in (("train", 10), ("test", 4)):
        expected = np.stack(
            [pixels(images_root / part / c / f"{i:03}.png") for c in ("cat", "dog") for i in range(count)]
        )
        assert np.array_equal(every(data, part), expected)
        assert data.splits[part].labels.tolist() == [0] * count + [1] * count


def test_resized_and_grey_as_pillow_does(make_folder: Make, images_root: Path) -> None:
    data = make_folder(image_size=12, channels=1)
    data.open()
    image = Image.open(images_root / "train/cat/000.png").convert("L").resize((12, 12), Image.Resampling.BILINEAR)
    assert np.array_equal(every(data, "train")[0, ..., 0], np.asarray(image))
    assert every(data, "train").shape == (20, 12, 12, 1)


ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
noise = np.random.default_rng(1).integers(256, size=(8, 8, 4), dtype=np.uint8)
eighths = np.rint(ramp / 65535 * 255).astype(np.uint8)[..., None].repeat(3, 2)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encoded(Image.fromarray(noise), "png"), noise[..., :3]),
        (encoded(Image.fromarray(noise[..., 0]), "png"), noise[..., :1].repeat(3, 2)),
        (encoded(Image.fromarray(noise[..., 0] > 127), "png"), (noise[..., :1] > 127).repeat(3, 2) * np.uint8(255)),
        (encoded(Image.fromarray(ramp), "png"), eighths),
        (encoded(Image.fromarray(ramp), "tiff"), eighths),
        (b"P5\n8 8\n65535\n" + ramp.astype(">u2").tobytes(), eighths),
    ],
    ids=["transparent", "grey", "black and white", "16-bit png", "16-bit tiff", "16-bit pgm"],
)
def test_modes(make_folder: Make, images_root: Path, content: bytes, expected: np.ndarray) -> None:
    replace_first(images_root, content)
    data = make_folder()
    data.open()
    assert np.array_equal(data.pixels("train", np.array([0]))[0], expected)


@pytest.mark.filterwarnings("error")  # Pillow warns of palettes with transparency
def test_palette_with_transparency(make_folder: Make, images_root: Path) -> None:
    palette = Image.fromarray(noise).quantize(16)
    replace_first(images_root, encoded(palette, "png"))
    data = make_folder()
    data.open()
    colours = np.array(palette.getpalette("RGB"), np.uint8).reshape(-1, 3)
    assert np.array_equal(data.pixels("train", np.array([0]))[0], colours[np.asarray(palette)])


def test_hidden_and_other_files_are_ignored_and_links_and_uppercase_suffixes_are_not(
    make_folder: Make, images_root: Path
) -> None:
    folder = images_root / "train/cat"
    (folder / "._000.png").write_bytes(b"what macOS writes")
    (folder / "Thumbs.db").write_bytes(b"what Windows writes")
    (folder / ".ipynb_checkpoints").mkdir()
    (images_root / "train/.cache").mkdir()
    (images_root / "train/labels.csv").write_text("")
    (folder / "000.png").rename(folder / "000.PNG")
    elsewhere = images_root / "elsewhere.png"
    shutil.copy(images_root / "test/dog/000.png", elsewhere)
    (folder / "zzz.png").symlink_to(elsewhere)
    (images_root / "train/dog").rename(images_root / "dogs")
    (images_root / "train/dog").symlink_to(images_root / "dogs")
    data = make_folder()
    assert data.open().class_names == ("cat", "dog")
    assert len(data.splits["train"].labels) == 21
    assert np.array_equal(data.pixels("train", np.array([0]))[0], pixels(folder / "000.PNG"))
    assert np.array_equal(data.pixels("train", np.array([10]))[0], pixels(elsewhere))


def test_relative_root_and_root_below_home(
    make_folder: Make, images_root: Path, cache_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    absolute = make_folder().open()
    monkeypatch.setenv("HOME", str(images_root.parent))
    monkeypatch.chdir(images_root)
    for root in (".", "../pets", "~/pets"):
        assert make_folder(root=root).open() == absolute


@pytest.mark.parametrize(
    ("kind", "content", "why"),
    [
        (".jpg", encoded(Image.fromarray(noise[..., :3]).resize((200, 200)), "jpeg")[:-500], "truncated"),
        (".png", encoded(Image.fromarray(noise), "png")[:80], "truncated"),
        (".png", b"", "cannot identify"),
        (".png", b"no image at all", "cannot identify"),
        (".tif", encoded(Image.fromarray(ramp.astype(np.float32)), "tiff"), "mode F"),
        (".tif", encoded(Image.fromarray(ramp.astype(np.int32)), "tiff"), "mode I"),
    ],
    ids=["truncated jpeg", "truncated png", "empty", "text", "float tiff", "32-bit tiff"],
)
def test_bad_image_is_named(
    make_folder: Make, images_root: Path, cache_dir: str, kind: str, content: bytes, why: str
) -> None:
    file = replace_first(images_root, content, kind)
    with pytest.raises(UserError) as caught:
        every(make_folder(), "train")
    assert str(file) in str(caught.value) and why in str(caught.value) and "Replace or remove it" in str(caught.value)
    data = make_folder(skip_broken=True)
    data.open()
    data.prepare_training()
    used = [*data.train_indices, *data.validation_indices]
    assert sorted(used) == [*range(1, 20)] and data.notes() == {"broken images": f"1 left out: {file}"}


def remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder)


def empty(folder: Path) -> None:
    remove(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: remove(root / "train"), r"There is no folder .*pets/train\. Expected ROOT/train/CLASS/IMAGE"),
        (lambda root: remove(root / "test"), r"There is no folder .*pets/test\."),
        (lambda root: remove(root), r"There is no folder .*pets/train\."),
        (lambda root: empty(root / "train"), r"pets/train holds no class folders"),
        (lambda root: empty(root / "train/cat"), r"pets/train/cat holds no images \(looked for \.avif"),
        (lambda root: remove(root / "test/dog"), r"only in train: dog; only in test: none"),
        (lambda root: (root / "test/cat").rename(root / "test/Cat"), r"only in train: cat; only in test: Cat"),
        (lambda root: (root / "train/cat").rename(root / "train/dog/cat"), r"classes below"),
        (
            lambda root: (root / "train/cat/more").symlink_to(root / "train/cat"),
            r"cat/more is a link to a folder above",
        ),
        (
            lambda root: shutil.copy(root / "train/cat/000.png", root / "train"),
            r"pets/train holds images that belong to no class: 000\.png",
        ),
        (
            lambda root: (root / "train/cat/gone.png").symlink_to(root / "gone"),
            r"Cannot read .*cat/gone\.png: No such file",
        ),
        (lambda root: remove(root / "train/cat", root / "test/cat"), r"has 1 class"),
        (lambda root: [f.unlink() for f in root.glob("train/*/00[1-9].png")], r"no class with two images"),
    ],
)
def test_bad_folder(make_folder: Make, images_root: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(images_root)
    with pytest.raises(UserError, match=message):
        make_folder().open()


def test_folder_of_datasets_is_told_apart(make_folder: Make, images_root: Path) -> None:
    with pytest.raises(UserError, match=rf"Did you mean data.root={images_root}\?"):
        make_folder(root=str(images_root.parent)).open()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root": None}, r"data\.root is empty.*QEXP_DATA"),
        ({"root": ""}, r"data\.root is empty"),
        ({"root": "/"}, r"data\.name"),
        ({"name": "a/b"}, r"data\.name is 'a/b'"),
        ({"image_size": 0}, r"data\.image_size is 0.*at least 1"),
        ({"image_size": 8.5}, r"data\.image_size is 8\.5.*whole number"),
        ({"eval_batch_size": -1}, r"data\.eval_batch_size is -1"),
        ({"calibration_images": 0}, r"data\.calibration_images is 0"),
        ({"channels": 2}, r"data\.channels is 2"),
        ({"validation_share": 0.0}, r"data\.validation_share is 0\.0"),
        ({"validation_share": 1.0}, r"data\.validation_share is 1\.0"),
        ({"image_size": 2}, r"data\.augmentation\.padding is 2; it must be less than data\.image_size, 2"),
        ({"num_classes": 3}, r"data\.num_classes is 3, but pets has 2 classes"),
    ],
)
def test_bad_option(make_folder: Make, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_folder(**options).open()


@pytest.mark.parametrize(
    ("name", "message"), [("000.png", "Cannot read .*000.png"), ("", "Cannot read the folder .*train/cat")]
)
def test_unreadable_file_or_folder(make_folder: Make, images_root: Path, name: str, message: str) -> None:
    path = images_root / "train/cat" / name
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        if os.access(path, os.R_OK):
            pytest.skip("this user may read everything")
        with pytest.raises(UserError, match=message):
            make_folder().open()
    finally:
        path.chmod(mode)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_the_test_part_may_have_another_name(make_folder: Make, images_root: Path, name: str) -> None:
    expected = every(make_folder(), "test")
    (images_root / "test").rename(images_root / name)
    assert np.array_equal(every(make_folder(), "test"), expected)


def test_images_without_classes_are_enough_to_calibrate(make_folder: Make, images_root: Path, tmp_path: Path) -> None:
    unlabelled = tmp_path / "unlabelled" / "deeper"
    unlabelled.mkdir(parents=True)
    expected = []
    for file in sorted((images_root / "train").glob("*/*.png"))[:12]:
        shutil.copy(file, unlabelled / f"{file.parent.name}-{file.name}")
        expected.append(pixels(file))
    shutil.rmtree(images_root / "train")
    data = make_folder(calibration=str(unlabelled.parent), calibration_images=5)
    data.open()
    assert len(data.train_indices) == len(data.validation_indices) == 0
    chosen = data.calibration().indices
    assert np.array_equal(data.pixels("calibration", chosen), np.stack(expected)[chosen]) and len(chosen) == 5
    values = np.stack(expected).astype(np.float64) / 255  # fewer than are needed for the statistics
    assert data.spec.preprocessing.mean == pytest.approx(values.mean((0, 1, 2)), abs=1e-12)
    with pytest.raises(UserError, match="has no training images"):
        data.prepare_training()
    with pytest.raises(UserError, match="data.calibration have no classes"):
        data.calibration_labels()
    data.prepare_evaluation("test", None)
    assert json.loads((data.folder / "test.json").read_text()) == [*range(8)]


def test_other_files_are_counted(make_folder: Make, images_root: Path) -> None:
    for name in ("a.txt", "b.txt", "Thumbs.db"):
        (images_root / "train" / "cat" / name).write_text("")
    data = make_folder()
    data.open()
    assert data.notes() == {"other files": "3 that are no images were ignored: 2 .txt, 1 .db"}


@pytest.mark.parametrize("name", ["nowhere.fn", "tests.data.support.nothing", "fn"])
def test_a_transform_that_is_not_there_is_told_at_once(make_folder: Make, name: str) -> None:
    with pytest.raises(UserError, match=f"data.transform={name} cannot be imported"):
        make_folder(transform=name)


def test_options_that_are_true_or_false_are_nothing_else(make_folder: Make) -> None:
    with pytest.raises(UserError, match="data.skip_broken is 'abc'; it must be true or false"):
        make_folder(skip_broken="abc")
