"""Files that list images with their classes give the images and labels that they list, or name the wrong line."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from qexp.data.folder import FolderData
from qexp.types import UserError
from tests.data.support import every

Make = Callable[..., FolderData]


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """pets/photos/N.png for N in 0..9, each filled with N, and pets/labels.csv: even ones are cats, odd ones dogs."""
    (tmp_path / "listed/photos").mkdir(parents=True)
    for number in range(10):
        save(tmp_path / f"listed/photos/{number}.png", number)
    rows = [f"photos/{number}.png,{'cat' if number % 2 == 0 else 'dog'}" for number in range(10)]
    (tmp_path / "listed/labels.csv").write_text("\n".join(["file,class", *rows]))
    return tmp_path / "listed"


def save(file: Path, value: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value,) * 3).save(file)


def write(root: Path, *lines: str) -> None:
    (root / "labels.csv").write_text("\n".join(lines))


def opened(make_folder: Make, root: Path, **options: object) -> tuple[FolderData, dict[str, dict[int, str]]]:
    """The data, and the class of each image of each part by the value that it is filled with."""
    data = make_folder(root=str(root), labels="labels.csv", **options)
    names = data.open().class_names
    values = {part: every(data, part)[:, 0, 0, 0].tolist() for part in data.splits}
    labels = {part: [names[label] for label in split.labels] for part, split in data.splits.items()}
    return data, {part: dict(zip(values[part], labels[part], strict=True)) for part in data.splits}


def test_a_fixed_fifth_of_each_class_is_the_test_part(make_folder: Make, pets: Path) -> None:
    data, found = opened(make_folder, pets)
    assert data.spec.class_names == ("cat", "dog") and data.spec.name == "listed"
    assert {**found["train"], **found["test"]} == {n: "cat" if n % 2 == 0 else "dog" for n in range(10)}
    assert sorted(found["test"].values()) == ["cat", "dog"] and len(found["train"]) == 8
    assert data.notes()["test part"] == "a fixed fifth of each class in labels.csv, which names no test images"
    lines = (pets / "labels.csv").read_text().splitlines()
    write(pets, lines[0], *reversed(lines[1:]))
    other, again = opened(make_folder, pets, seed=5, split_seed=3)
    assert again == found and other.spec.digest == data.spec.digest, "neither the order of lines nor a seed counts"


def test_a_column_says_the_part(make_folder: Make, pets: Path) -> None:
    rows = [f"photos/{n}.png;{'cat' if n % 2 else 'dog'};{'Train' if n < 6 else 'valid'}" for n in range(10)]
    write(pets, "filename;label;split", *rows)
    _, found = opened(make_folder, pets)
    assert found == {
        "train": {n: "cat" if n % 2 else "dog" for n in range(6)},
        "test": {n: "cat" if n % 2 else "dog" for n in range(6, 10)},
    }


def test_the_test_part_takes_the_place_of_val(make_folder: Make, pets: Path) -> None:
    part = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    write(pets, "image,target,part", *(f"photos/{n}.png,{n % 2},{part[n]}" for n in range(10)))
    data, found = opened(make_folder, pets)
    assert [*found["test"]] == [8, 9] and len(found["train"]) == 6
    assert data.notes() == {
        "val part": "2 images, which test takes the place of",
        "other files": "1 that are no images were ignored: 1 .csv",
    }


@pytest.mark.parametrize("test", ["test", "val", "valid", "validation"])
@pytest.mark.parametrize("prefix", [True, False], ids=["from the root", "from the folder of the part"])
def test_folders_say_the_part(make_folder: Make, tmp_path: Path, test: str, prefix: bool) -> None:
    rows = []
    for number in range(8):
        folder = "train" if number < 6 else test
        save(tmp_path / "data" / folder / f"sub/{number}.png", number)
        rows.append(f"{folder + '/' if prefix else ''}sub/{number}.png\t{'ab'[number % 2]}")
    write(tmp_path / "data", "path\tclass", *rows)
    _, found = opened(make_folder, tmp_path / "data")
    assert found == {
        "train": {n: "ab"[n % 2] for n in range(6)},
        "test": {n: "ab"[n % 2] for n in (6, 7)},
    }


def test_names_without_suffix_quotes_and_a_byte_order_mark(make_folder: Make, pets: Path) -> None:
    """As a competition on breeds of dogs has it, and as Excel writes it."""
    (pets / "photos").rename(pets / "train")
    rows = [f'{number},"terrier, {"large" if number % 2 else "日本"}"' for number in range(10)]
    (pets / "labels.csv").write_text("\ufeff" + "\r\n".join(["id,breed", *rows, ""]))
    data, found = opened(make_folder, pets)
    assert data.spec.class_names == ("terrier, large", "terrier, 日本")
    assert {**found["train"], **found["test"]}[3] == "terrier, large"


def test_whole_paths(make_folder: Make, pets: Path) -> None:
    write(pets, "class,path", *(f"{number % 2},{pets}/photos/{number}.png" for number in range(10)))
    _, found = opened(make_folder, pets)
    assert {**found["train"], **found["test"]} == {n: str(n % 2) for n in range(10)}


def test_one_image_of_each_class_leaves_none_to_test_on(make_folder: Make, pets: Path) -> None:
    write(pets, "class,ignored,file", *(f"{number},x,photos\\{number % 10}.png" for number in range(1, 11)), "")
    with pytest.raises(UserError, match="no class with two images"):
        opened(make_folder, pets)


def test_numbers_are_in_their_order(make_folder: Make, pets: Path) -> None:
    write(pets, "class,file", *(f"{number // 2 * 5},./photos/{number}.png" for number in range(10)))
    assert make_folder(root=str(pets), labels="labels.csv").found_classes() == ("0", "5", "10", "15", "20")


def test_the_file_may_lie_elsewhere(make_folder: Make, pets: Path, tmp_path: Path) -> None:
    before = make_folder(root=str(pets), labels="labels.csv").open()
    (pets / "labels.csv").rename(tmp_path / "elsewhere.csv")
    assert make_folder(root=str(pets), labels=str(tmp_path / "elsewhere.csv")).open() == before


def test_labels_sizes_and_names_are_in_the_digest_and_times_in_the_version(make_folder: Make, pets: Path) -> None:
    def digests(root: Path = pets) -> tuple[str, str]:
        data = make_folder(root=str(root), labels="labels.csv")
        return data.source_digest(), data.source_version()

    first = digests()
    copy = pets.with_name("copy")
    shutil.copytree(pets, copy)
    assert digests(copy)[0] == first[0]
    os.utime(pets / "photos/3.png", ns=(1, 1))
    assert digests()[0] == first[0] and digests()[1] != first[1]
    (pets / "labels.csv").write_text((pets / "labels.csv").read_text().replace("3.png,dog", "3.png,cat"))
    assert digests()[0] != first[0]
    Image.new("RGB", (9, 9)).save(copy / "photos/3.png")
    assert digests(copy)[0] != first[0]


def test_images_that_are_not_listed_are_counted(make_folder: Make, pets: Path) -> None:
    save(pets / "more/x.png", 0)
    data, _ = opened(make_folder, pets)
    assert data.notes()["images without labels"] == "1 that labels.csv does not list were ignored"


def test_with_calibration_images_no_training_images_are_needed(
    make_folder: Make, pets: Path, images_root: Path
) -> None:
    write(pets, "file,class,part", *(f"photos/{number}.png,{number % 2},test" for number in range(10)))
    with pytest.raises(UserError, match=r"labels\.csv lists no training images\. List some, or give data\.calibration"):
        opened(make_folder, pets)
    data, found = opened(make_folder, pets, calibration=str(images_root / "train"))
    assert found["test"] == {n: str(n % 2) for n in range(10)} and len(found["train"]) == 0
    assert len(data.calibration()) == 20


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["name,class", "photos/0.png,cat"], r"line 1: no column is named file or .*the columns are name, class"),
        (["file,kind", "photos/0.png,cat"], r"line 1: no column is named class or label"),
        ([], r"line 1: no column .*the columns are missing"),
        (["file,class"], r"labels\.csv lists no images"),
        (["file,class", "photos/0.png"], r"line 2: it has 1 columns, and the first line names at least 2"),
        (["file,class", "photos/0.png,cat", "photos/1.png,"], r"line 3: the class is empty"),
        (["file,class", ",cat"], r"line 2: the file is empty"),
        (["file,class,part", "photos/0.png,cat,dev"], r"line 2: the part is 'dev'; it must be one of train, test, val"),
        (["file,class", "photos/x.png,cat"], r"labels\.csv, line 2: there is no image photos/x\.png below data\.root"),
        (["file,class", "0.png,cat"], r"no image 0\.png .*Did you mean photos/0\.png"),
        (["file,class", "../secret.png,cat"], r"line 2: there is no image \.\./secret\.png"),
        (["file,class", "photos/0.png,cat", "photos/0,dog"],
         r"line 3: the image photos/0\.png was listed before, in .*line 2"),
        (["file,class", "photos/twice,cat"],
         r"line 2: several images are called photos/twice: photos/twice\.jpg, photos/twice\.png"),
        (["file,class,part", *(f"photos/{n}.png,{n % 2},{'test' if n % 2 else 'train'}" for n in range(10))],
         r"no training images of 1, but test images"),
        (["file,class", "photos/0.png,a", "photos/1.png,b", "val/9.png,a"],
         r"images below val/ and others that are neither there nor below train/: photos/0\.png"),
        (["file,class", 'photos/0.png,"cat\n', 'photos/1.png,dog'], r"labels\.csv, line \d: unexpected end of data"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(make_folder: Make, pets: Path, lines: list[str], message: str) -> None:
    save(pets / "photos/twice.png", 0)
    save(pets / "photos/twice.jpg", 0)
    save(pets / "val/9.png", 0)
    write(pets, *lines)
    with pytest.raises(UserError, match=message):
        make_folder(root=str(pets), labels="labels.csv").open()


def test_a_file_that_is_missing_or_no_text(make_folder: Make, pets: Path) -> None:
    with pytest.raises(UserError, match=r"Cannot read data\.labels=gone\.csv: .*No such file"):
        make_folder(root=str(pets), labels="gone.csv").open()
    (pets / "labels.csv").write_bytes(b"file,class\nphotos/0.png,\xff\xfe")
    with pytest.raises(UserError, match=r"Cannot read data\.labels=.*labels\.csv: .*Give a \.csv file in UTF-8"):
        make_folder(root=str(pets), labels="labels.csv").open()
