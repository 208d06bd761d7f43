"""Classes of images are found among the logits of a network that knows more of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models._meta import _IMAGENET_CATEGORIES

from qexp.data.classes import LogitTable, read_table
from qexp.data.folder import FolderData
from qexp.types import DataSpec, UserError
from tests.data.conftest import write_images

Make = Callable[..., FolderData]
TENCH, GOLDFISH, TOILET_PAPER = "n01440764", "n01443537", "n15075141"  # the logits 0, 1 and 999


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """Three of ImageNet's classes, not in the order of their ids."""
    return write_images(tmp_path / "birds", (TOILET_PAPER, TENCH, GOLDFISH), train=4, test=2)


def test_imagenets_classes_are_those_of_timm_and_torchvision() -> None:
    synsets = pytest.importorskip("timm.data").ImageNetInfo()
    table = read_table("imagenet", None)
    assert table.outputs == 1000 and [*table.names.values()] == [*_IMAGENET_CATEGORIES]
    assert [*table.index] == [synsets.index_to_label_name(index) for index in range(1000)]
    assert [*table.index.values()] == [*table.names] == [*range(1000)]


def test_folders_are_judged_among_all_logits(make_folder: Make, birds: Path) -> None:
    data = make_folder(root=str(birds), classes="imagenet")
    spec = data.open()
    assert spec.class_names == tuple(_IMAGENET_CATEGORIES) and spec.num_classes == spec.network_outputs == 1000
    assert spec.logits == () and data.splits["test"].labels.tolist() == [0, 0, 1, 1, 999, 999]
    assert data.notes() == {
        "classes": "3 of the network's 1000 (data.classes=imagenet), which answers with all of them (data.among=all)"
    }


def test_or_among_their_own(make_folder: Make, birds: Path) -> None:
    data = make_folder(root=str(birds), classes="imagenet", among="own")
    spec = data.open()
    assert spec.class_names == ("tench", "goldfish", "toilet tissue") and spec.logits == (0, 1, 999)
    assert (spec.num_classes, spec.network_outputs) == (3, 1000)
    assert data.splits["test"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert "answers with these alone" in data.notes()["classes"]
    assert DataSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_each_way_is_other_data_and_is_found_again(make_folder: Make, birds: Path) -> None:
    ways = [{}, {"classes": "imagenet"}, {"classes": "imagenet", "among": "own"}]
    specs = [make_folder(root=str(birds), **way).open() for way in ways]
    assert len({spec.digest for spec in specs}) == 3
    again = make_folder(root=str(birds), **ways[2], num_classes=1000)  # as the config says after the first time
    assert again.open() == specs[2] and again.splits["test"].labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_baseline_of_other_logits_is_refused(make_folder: Make, birds: Path) -> None:
    data = make_folder(root=str(birds), classes="imagenet", among="own")
    trained = data.open()
    data.normalise_like(trained)
    with pytest.raises(
        UserError, match=r"logits 0, 1, 998 of 1000, and birds asks for 0, 1, 999 of 1000\. Give the data"
    ):
        data.normalise_like(replace(trained, logits=(0, 1, 998)))
    with pytest.raises(UserError, match=r"the logits of its classes alone, and"):
        data.normalise_like(replace(trained, logits=(), outputs=0))


def test_calibration_images_have_no_class_to_be_mapped(make_folder: Make, birds: Path, images_root: Path) -> None:
    data = make_folder(root=str(birds), classes="imagenet", calibration=str(images_root / "train"))
    data.open()
    assert data.splits["calibration"].labels.tolist() == [0] * 20


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "dog 3\nred cat 1\n", LogitTable({"dog": 3, "red cat": 1}, {3: "dog", 1: "red cat"}, 4)),
        ("a.csv", "dog,3\ncat,1\n", LogitTable({"dog": 3, "cat": 1}, {3: "dog", 1: "cat"}, 4)),
        (
            "a.csv",
            'class,index,name\nn1,0,"fox, red"\n\nn2, 2 ,\n',
            LogitTable({"n1": 0, "n2": 2}, {0: "fox, red", 2: "n2"}, 3),
        ),
        ("a.txt", "\ufeffred cat\ndog 2\n", LogitTable({"red cat": 0, "dog 2": 1}, {0: "red cat", 1: "dog 2"}, 2)),
        ("a.json", '{"dog": 3, "cat": 1}', LogitTable({"dog": 3, "cat": 1}, {3: "dog", 1: "cat"}, 4)),
        ("a.json", '["cat", "dog"]', LogitTable({"cat": 0, "dog": 1}, {0: "cat", 1: "dog"}, 2)),
        ("a.txt", "日本 1\nfox 0", LogitTable({"日本": 1, "fox": 0}, {1: "日本", 0: "fox"}, 2)),
        ("a.txt", "pug 1\nhusky 1\ncat 0", LogitTable({"pug": 1, "husky": 1, "cat": 0}, {1: "pug", 0: "cat"}, 2)),
    ],
    ids=["lines", "csv", "names", "one a line", "json", "json list", "other script", "two classes of one logit"],
)  # fmt: skip
def test_files(tmp_path: Path, name: str, text: str, expected: LogitTable) -> None:
    (tmp_path / name).write_text(text)
    assert read_table(str(tmp_path / name), None) == expected


def test_a_file_may_name_few_of_many_logits(make_folder: Make, tmp_path: Path) -> None:
    file = tmp_path / "classes.csv"
    file.write_text("cat,7,tabby\ndog,2\n")
    data = make_folder(classes=str(file), num_classes=10)
    assert data.open().class_names == (*"01", "dog", *"3456", "tabby", *"89")
    assert data.splits["test"].labels.tolist() == [7] * 4 + [2] * 4
    own = make_folder(classes=str(file), num_classes=10, among="own")
    assert own.open().class_names == ("dog", "tabby") and own.spec.logits == (2, 7)
    assert own.splits["test"].labels.tolist() == [1] * 4 + [0] * 4, "the cats come first in the folder"
    assert own.spec.network_outputs == 10
    logits = torch.arange(10).expand(1, 10)
    names = data.spec.class_names
    assert [names[i] for i in logits.index_select(1, torch.tensor(own.spec.logits))[0]] == [*own.spec.class_names]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("cat,0\ndog\n", {}, r"classes\.csv, line 2: '' is no index of a logit\. Its lines are"),
        ("cat,0\ndog,one\n", {}, r"line 2: 'one' is no index"),
        ("cat -1\ndog 0\n", {}, r"line 1: '-1' is no index"),
        ("cat,0,tabby,grey\n", {}, r"line 1: '0' is no index"),
        ("cat 0\ndog 1\ncat 2\n", {}, r"line 3: the class 'cat' was another logit before"),
        ("", {}, r"names no classes"),
        ("cat,0\n", {}, r"does not say which logits 1 of the 2 classes of pets are: dog\. It knows cat"),
        ("cat,0\ndog,9\n", {"num_classes": 3}, r"data\.num_classes is 3, but .* names the logit 9"),
        ("cat,0\ndog,9\n", {"among": "mine"}, r"data\.among is 'mine': .*Known: all, own"),
    ],
)
def test_what_is_wrong_is_named(
    make_folder: Make, tmp_path: Path, text: str, options: dict[str, object], message: str
) -> None:
    file = tmp_path / "classes.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        make_folder(classes=str(file), **options).open()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"is no JSON"),
        ("3", r"holds a int"),
        ('{"cat": "0"}', r"'0' of 'cat' is no index"),
        ('{"cat": -1}', r"-1 of 'cat' is no index"),
        ('{"cat": true}', r"True of 'cat' is no index"),
    ],
)
def test_wrong_json(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_table(str(tmp_path / "classes.json"), None)


def test_options_that_need_each_other(make_folder: Make, birds: Path) -> None:
    with pytest.raises(UserError, match=r"data\.among=own needs data\.classes"):
        make_folder(among="own")
    with pytest.raises(UserError, match=r"Cannot read data\.classes=/no/such: .*Give imagenet or a file"):
        make_folder(classes="/no/such")
    with pytest.raises(UserError, match=r"logits 2 of the 2 classes of pets are: cat, dog\. It knows n01440764"):
        make_folder(classes="imagenet").open()


def test_the_digest_without_a_table_is_the_folders_own(make_folder: Make, birds: Path) -> None:
    data = make_folder(root=str(birds))
    assert data.source_digest() == data.found_digest()
    assert np.array_equal(data.listing().labels["test"], data.found_labels()["test"])
