"""Options in `conf` in the current folder come before qexp's own, and only for qexp's programs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from qexp import sources
from qexp.artifact import EngineSpec
from qexp.jobs.train import baseline_key
from qexp.method.artifacts import artifact_name
from qexp.model.base import build_network
from qexp.places import CONF, EXAMPLE, choices, conf_file, conf_folders
from qexp.startup import own_folder_first


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
    assert config.engine == {"_target_": "mine.Engine"}
    assert config.recipe.epochs == 77 and "optimizer" not in config.recipe, "of qexp's recipe finetune, nothing is left"
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


def forget() -> None:
    """As if this process had just begun."""
    for found in (sources._find, sources._installed, sources._source):
        found.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "shapes"]:
        del sys.modules[name]


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the example of `qexp init`, as the command finds it."""
    shutil.copytree(EXAMPLE, tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    monkeypatch.setattr(sys, "path", [*sys.path])
    own_folder_first()
    forget()
    yield tmp_path / "mine"
    forget()


def keys_of_example() -> Callable[[], dict[str, str]]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        few = ["data.train_images=30", "data.test_images=6", "trainer=cpu"]
        config = compose("compress", ["data=shapes", "model=shapes_net", "method=short_mantissa", *few])
    config.data.num_classes = 3

    def made() -> dict[str, str]:
        forget()
        data, method, network = instantiate(config.data), instantiate(config.method), build_network(config.model)
        model = OmegaConf.to_container(config.model, resolve=True)
        source = {"model": "shapes_net", "weights": "0123", "network": model}
        decoder = data.open().decoder
        return {
            "decoder": decoder,
            "artifact": artifact_name(method, network, data, EngineSpec(), source),
            "baseline": baseline_key(config, data, {"model": model}),
        }

    return made


def test_the_users_own_code_counts_like_qexps(example: Path) -> None:
    (example / "shapes" / "helper.py").write_text("from torch.nn import Linear\n")
    network = example / "shapes" / "network.py"
    network.write_text(
        network.read_text().replace("import annotations\n", "import annotations\nfrom . import helper\n")
    )
    made = keys_of_example()
    before = made()
    changed = {}
    for file in ("images", "network", "short_mantissa", "helper"):
        code = example / "shapes" / f"{file}.py"
        text = code.read_text()
        code.write_text(f"{text}\n_changed = 1  # and a comment\n")
        after = made()
        code.write_text(f"{text}\n# a comment alone\n")
        changed[file] = {name for name in before if after[name] != before[name]}
    assert made() == before, "comments decide nothing"
    assert changed == {
        "images": {"decoder", "artifact", "baseline"},
        "network": {"artifact", "baseline"},
        "short_mantissa": {"artifact"},
        "helper": {"artifact", "baseline"},
    }
