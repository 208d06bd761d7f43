"""Options in `conf` in the current folder come before qexp's own, and only for qexp's programs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from qexp.places import CONF, choices, conf_file, conf_folders


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The conf/ of a user's folder, with an engine and a recipe that qexp has too."""
    for place, text in {
        "engine/mine.yaml": "_target_: mine.Engine",
        "recipe/finetune.yaml": "epochs: 77",
        "engine/_part.yaml": "",
    }.items():
        file = tmp_path / "conf" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "conf"


def test_it_is_looked_up_first(own: Path) -> None:
    assert conf_folders() == [own, CONF]
    assert conf_file("engine/mine.yaml") == own / "engine/mine.yaml"
    assert conf_file("recipe/finetune.yaml") == own / "recipe/finetune.yaml"
    assert conf_file("engine/eager.yaml") == CONF / "engine/eager.yaml"
    assert {"mine", "eager"} <= {*choices("engine")} and "_part" not in choices("engine")
    with pytest.raises(FileNotFoundError, match=f"engine/none.yaml in {own} or {CONF}"):
        conf_file("engine/none.yaml")


def test_whatever_composes_a_config_finds_it_first(own: Path) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("compress", ["model=resnet8", "engine=mine", "recipe=finetune", "data=digits"])
    assert config.engine == {"_target_": "mine.Engine"} and config.recipe == {"epochs": 77}
    assert config.data._target_ == "qexp.data.digits.DigitsData"


def test_other_programs_of_hydras_are_left_alone(own: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "config.yaml").write_text("defaults: [engine: mine]")
    with initialize_config_dir(str(theirs), version_base="1.3"), pytest.raises(Exception, match="engine/mine"):
        compose("config")


def test_a_clone_is_no_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONF.parent)
    assert conf_folders() == [CONF]
