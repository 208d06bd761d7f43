"""Every file of conf/ composes, says what each key means, and names things that exist."""

from __future__ import annotations

import copy
import functools
import inspect
import json
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from qexp.errors import explain
from qexp.places import CONF
from qexp.search.search import Options
from qexp.within_limits.search import Options as WithinOptions

LAUNCHERS = sorted((CONF / "hydra" / "launcher").glob("*.yaml"))
SWEEPERS = sorted((CONF / "hydra" / "sweeper").rglob("*.yaml"))
FILES = sorted([*LAUNCHERS, *SWEEPERS, *(f for f in CONF.rglob("*.yaml") if "hydra" not in f.relative_to(CONF).parts)])
GROUPS = {"data", "device", "engine", "method", "model", "recipe", "tracking", "trainer"}
CHOICES = sorted((f.parent.name, f.stem) for f in FILES if f.parent.name in GROUPS and not f.stem.startswith("_"))
NEEDED = {
    "custom": ["model._target_=torch.nn.Identity"],
    "timm": ["model.name=test_resnet"],
    "torchvision": ["model.name=resnet18"],
    "folder": ["data.root=somewhere", "data.name=x"],
    "dataset": [f"data.{part}._target_=torchvision.datasets.FakeData" for part in ("train", "test")],
    "ssh": ["device.host=board"],
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


@functools.cache
def nth(number: int) -> DictConfig:
    """The config of compress.py with the choice of that number of each group, from the first again after the last."""
    names = {group: [name for other, name in CHOICES if other == group] for group in GROUPS}
    row = {group: found[number % len(found)] for group, found in names.items()}
    needed = [word for name in row.values() for word in NEEDED.get(name, [])]
    return compose("compress", [*(f"{group}={name}" for group, name in row.items()), *needed])


def chosen(group: str, name: str) -> DictConfig:
    """A config of compress.py with one choice of a group. One serves several groups: each takes long to compose."""
    return nth([choice for choice in CHOICES if choice[0] == group].index((group, name)))


@pytest.mark.parametrize(("group", "name"), CHOICES, ids=["/".join(c) for c in CHOICES])
def test_every_choice_composes_and_its_targets_exist(group: str, name: str) -> None:
    config = copy.deepcopy(chosen(group, name))
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
    leaves = {f.stem for f in (CONF / "measure").glob("[!_]*.yaml")} - {"default"}
    assert leaves <= set(config.measure)
    for leaf in leaves:
        instantiate(config.measure[leaf])


def parameters(target: object) -> list[inspect.Parameter]:
    """Of a function, or of a class's constructor: `**common` are those of the class above it."""
    if not inspect.isclass(target) or is_dataclass(target):
        all_of_them = inspect.signature(target).parameters.values()  # type: ignore[arg-type]
        return [parameter for parameter in all_of_them if parameter.kind is not parameter.VAR_KEYWORD]
    found = []
    for each in (each for each in target.__mro__ if "__init__" in vars(each) and each is not object):
        _, *own = inspect.signature(each.__init__).parameters.values()  # the first is self
        found += [parameter for parameter in own if parameter.kind is not parameter.VAR_KEYWORD]
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own):
            break
    return found


def ours(node: object, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Path and node of all that qexp's own classes and functions are made from."""
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
        if str(node.get("_target_", "")).startswith(("qexp.", "hydra_plugins.qexp")):
            yield path, node
        for key in node:
            if not OmegaConf.is_missing(node, key):
                yield from ours(node._get_node(key), f"{path}.{key}")


@pytest.mark.parametrize(("group", "name"), CHOICES, ids=["/".join(c) for c in CHOICES])
def test_a_yaml_names_all_options_of_what_it_makes_and_python_has_no_defaults(group: str, name: str) -> None:
    found = dict(ours(chosen(group, name)))
    assert {".data", ".baseline.engine", ".measure.latency"} <= found.keys()
    for path, node in found.items():
        taken = parameters(get_object(node["_target_"]))
        if node.get("_partial_"):  # the first argument is given later, and so is the length of a training
            taken = [parameter for parameter in taken[1:] if parameter.name != "total_steps"]
        not_options = {"_target_", "_recursive_", "_partial_", *(["id"] if path == ".model" else [])}
        assert {*node} - not_options == {parameter.name for parameter in taken}, path
        preset = [parameter.name for parameter in taken if parameter.default is not parameter.empty]
        assert not preset, f"{path}: {preset} have their defaults in the yaml"


@pytest.mark.parametrize("sweeper", ["optuna", "rows", "within"])
def test_so_do_the_yamls_of_sweepers(sweeper: str) -> None:
    given = ["model=resnet8", "experiment=within" if sweeper == "within" else f"hydra/sweeper={sweeper}"]
    node = compose("compress", given, return_hydra_config=True).hydra.sweeper
    passed_on = {"optuna": Options, "within": WithinOptions}  # what the sweeper's own class passes all options to
    target = passed_on.get(sweeper) or get_object(node["_target_"])
    assert {*node} - {"_target_", "_recursive_"} == {parameter.name for parameter in parameters(target)}
    assert all(parameter.default is parameter.empty for parameter in parameters(target))


def test_what_is_no_measure_is_a_limit_of_all() -> None:
    measure = compose("compress").measure
    assert {name for name in measure if not isinstance(measure[name], DictConfig)} == {"timeout_s", "memory_mb"}


def test_candidates_are_the_engines_own_files() -> None:
    given = ["engine.candidates.openvino=null", "engine.candidates.inductor.device=cuda", "engine@fp32_engines=eager"]
    config = compose("compress", ["model=resnet8", "data=digits", *given], return_hydra_config=True)
    inductor = OmegaConf.load(CONF / "engine" / "inductor.yaml")
    assert config.engine.candidates.inductor == {**inductor, "device": "cuda"}
    assert config.engine.candidates.openvino is None and config.fp32_engines == OmegaConf.load(
        CONF / "engine/eager.yaml"
    )
    assert config.engine.trial == {**config.engine.trial, **OmegaConf.load(CONF / "measure/_turns.yaml"), "windows": 5}
    choices = config.hydra.runtime.choices
    assert (choices["engine"], choices["method"], choices["data"]) == ("auto", "static", "digits")


@pytest.mark.parametrize(
    ("method", "key", "present"),
    [
        ("qat", "distillation", ["method.recipe.distillation"]),
        ("prune", "seed", ["method.recipe.seed"]),
        ("prune_channels", "trainer", ["method.recipe.trainer"]),
        ("prune_channels_qat", "distillation",
        [f"method.stages.{stage}.recipe.distillation" for stage in ("prune_channels", "qat")]),
        ("prune_channels_qat", "stages.qat.distillation", ["method.stages.qat.recipe.distillation"]),
        ("deep_compression", "recipe.epochs",
        [f"method.stages.{stage}.recipe.epochs" for stage in ("prune", "cluster")]),
    ],
)  # fmt: skip
def test_a_key_that_lies_further_down_is_named(method: str, key: str, present: list[str]) -> None:
    with pytest.raises(ConfigCompositionException) as raised:
        compose("compress", ["model=resnet8", f"method={method}", f"method.{key}=1"])
    assert explain(raised.value) == f"There is no method.{key} here, but {' and '.join(present)}."


@pytest.mark.parametrize("method", ["prune", "prune_channels", "low_rank", "cluster", "qat"])
def test_fine_tuning_is_one_node_and_says_what_decides_its_result(method: str) -> None:
    changed = ["method.recipe.epochs=0", "method.recipe.optimizer.lr=0.5", "method.recipe.distillation=0"]
    config = compose("compress", ["model=resnet8", "trainer=cpu", f"method={method}", *changed])
    shared = OmegaConf.load(CONF / "method" / "_fine_tuning.yaml")
    assert {*config.method.recipe} == {*shared, "optimizer"}
    options = instantiate(config.method).recipe.options
    assert json.loads(json.dumps(options)) == options, "plain values"
    assert (options["epochs"], options["optimizer"]["lr"], options["distillation"]) == (0, 0.5, 0)
    assert options.keys() == {*shared, "optimizer", "precision"} - {"_target_", "_recursive_", "exact"}
    assert not {"accelerator", "max_epochs"} & options["trainer"].keys(), "they say where, and what the recipe says"


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
    """Every key has a comment on its line.

    It needs none if it is said above it in the file, repeats a base file's, or is a term of the field.
    """
    text = file.read_text()
    inherited = "".join(
        (file.parent / f"_{n}.yaml").read_text() for n in ("common", "resnet", "vgg", "sgd") if f"_{n}" in text
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
