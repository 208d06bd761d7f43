"""Every file of conf/ composes, says what each key means, and names things that exist."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

CONF = Path(__file__).parents[1] / "conf"
LAUNCHERS = sorted((CONF / "hydra" / "launcher").glob("*.yaml"))
SWEEPERS = sorted((CONF / "hydra" / "sweeper").rglob("*.yaml"))
FILES = sorted([*LAUNCHERS, *SWEEPERS, *(f for f in CONF.rglob("*.yaml") if "hydra" not in f.relative_to(CONF).parts)])
GROUPS = {"data", "engine", "method", "model", "recipe", "tracking", "trainer"}
CHOICES = sorted((f.parent.name, f.stem) for f in FILES if f.parent.name in GROUPS and not f.stem.startswith("_"))
NEEDED = {
    "custom": ["model._target_=torch.nn.Identity"],
    "torchvision": ["model.name=resnet18"],
    "folder": ["data.root=somewhere", "data.name=x"],
    "server": ["tracking.uri=http://somewhere:5000"],
}


@pytest.fixture(autouse=True)
def conf() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def targets(node: object) -> Iterator[str]:
    if isinstance(node, DictConfig):
        if "_target_" in node and not OmegaConf.is_missing(node, "_target_"):
            yield node["_target_"]
        for key in node:
            if not OmegaConf.is_missing(node, key):
                yield from targets(node[key])


@pytest.mark.parametrize(("group", "name"), CHOICES, ids=["/".join(c) for c in CHOICES])
def test_every_choice_composes_and_its_targets_exist(group: str, name: str) -> None:
    overrides = [f"{group}={name}", *NEEDED.get(name, [])]
    defaults = [o for o in ("model=resnet8", "data=digits") if not o.startswith(f"{group}=")]
    config = compose("compress", [*defaults, *overrides])
    config.data.num_classes = 10
    found = list(targets(config[group]))
    assert all(get_object(target) for target in found)
    OmegaConf.to_container(config[group], resolve=True, throw_on_missing=True)
    if group in ("method", "tracking"):
        instantiate(config[group])
    if group == "engine":
        engines = config.engine.get("candidates", {name: config.engine})
        assert [instantiate(engine).name for engine in engines.values()] == list(engines)


@pytest.mark.parametrize("name", [f.stem for f in LAUNCHERS])
def test_every_launcher_takes_its_file_before_the_plugins_defaults(name: str) -> None:
    config = compose("compress", ["model=resnet8", f"hydra/launcher={name}"], return_hydra_config=True).hydra
    ours = OmegaConf.load(CONF / "hydra" / "launcher" / f"{name}.yaml")
    assert OmegaConf.merge(config.launcher, ours) == config.launcher
    for key in {"submitit_folder", "name"} & set(config.launcher):
        config.launcher[key] = "of a sweep, which is not there yet"
    assert type(Plugins.instance()._instantiate(config.launcher)) is get_object(config.launcher._target_)


@pytest.mark.filterwarnings("ignore:BruteForceSampler is experimental")
@pytest.mark.parametrize("name", [f.stem for f in SWEEPERS if f.parent.name == "sampler"])
def test_every_sampler_is_one_of_optunas(name: str) -> None:
    config = compose(
        "compress", ["model=resnet8", "hydra/sweeper=optuna", f"hydra/sweeper/sampler={name}"], return_hydra_config=True
    )
    assert isinstance(instantiate(config.hydra.sweeper.sampler, seed=0), get_object("optuna.samplers.BaseSampler"))
    assert type(Plugins.instance()._instantiate(config.hydra.sweeper)) is get_object(config.hydra.sweeper._target_)


@pytest.mark.parametrize("name", sorted(f.stem for f in (CONF / "experiment").glob("*.yaml")))
def test_every_experiment_composes(name: str) -> None:
    config = compose("compress", ["model=resnet8", f"experiment={name}"], return_hydra_config=True)
    assert config.hydra.mode is not None


def test_measures_are_all_in_the_default() -> None:
    config = compose("compress", ["model=resnet8", "data=digits"])
    leaves = {f.stem for f in (CONF / "measure").glob("*.yaml")} - {"default"}
    assert leaves <= set(config.measure)
    for leaf in leaves:
        instantiate(config.measure[leaf])


def test_measures_offer_all_their_options_and_no_others() -> None:
    measures = {name: dict(node) for name, node in compose("compress").measure.items() if isinstance(node, DictConfig)}
    offered = {name: node.keys() - {"_target_"} for name, node in measures.items()}
    assert offered == {
        name: inspect.signature(get_object(node["_target_"])).parameters.keys() for name, node in measures.items()
    }
    others = compose("compress").measure.keys() - measures.keys()
    assert others == {"timeout_s", "memory_mb"}


@pytest.mark.parametrize("file", FILES, ids=[str(f.relative_to(CONF)) for f in FILES])
def test_self_comes_last_before_experiment(file: Path) -> None:
    defaults = (yaml.safe_load(file.read_text()) or {}).get("defaults", [])
    groups = [d for d in defaults if isinstance(d, str) or not any(k.startswith("override") for k in d)]
    if "_self_" in groups:
        rest = groups[groups.index("_self_") + 1 :]
        assert all(isinstance(d, dict) and list(d) == ["experiment"] for d in rest)
    else:
        assert file.parent.name == "experiment" or not [d for d in groups if isinstance(d, str)]


PLAIN = {"momentum", "nesterov", "weight_decay", "id", "blocks", "widths", "depth", "defaults", "hydra", "name"}


@pytest.mark.parametrize(
    "file", [f for f in FILES if f.parent.name != "experiment"], ids=lambda f: str(f.relative_to(CONF))
)
def test_every_key_says_what_it_means(file: Path) -> None:
    """A comment on its line, unless the key is said above it in the file, repeats a base file's, or is a term of the field."""
    text = file.read_text()
    inherited = "".join(
        (file.parent / f"_{n}.yaml").read_text() for n in ("common", "resnet", "vgg") if f"_{n}" in text
    )
    hydra = text.find("\nhydra:")
    for line in text[: hydra if hydra > 0 else None].splitlines():
        key, colon, value = line.strip().partition(":")
        if not colon or key.startswith(("#", "-", "_", "{")) or not value.strip() or "#" in line:
            continue
        assert (
            key in PLAIN
            or f"{key}:" in inherited
            or value.strip().startswith("{_target_")
            or value.strip().startswith("${")
        ), f"{file.name}: say what {key} means"
