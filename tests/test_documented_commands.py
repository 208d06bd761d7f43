"""Every command that README.md, CONTRIBUTING.md and docs/ give is one that works today.

Commands of Hydra's programs are composed as they stand, job by job, and the options of other programs are parsed.
With QEXP_THOROUGH=1 tests/test_documented_way.py really runs the short ones, and with QEXP_SLOW=1 the long ones are
run here.
"""

from __future__ import annotations

import contextlib
import math
import re
import shlex
import tomllib
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.plugins import Plugins
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

import qexp.cli
from qexp.jobs.summary import Summary, check_end
from qexp.places import CONF
from tests.chain import ADDED, CHAIN, IMAGES, run, working_folder
from tests.commands import QUICK, without
from tests.documents import COMMANDS, DOCUMENTS, HYDRA, ROOT, call, documented

CLICK = {
    "mlflow": "mlflow.cli",
    "ray": "ray.scripts.scripts",
}  # programs whose options can be parsed without doing what they say

# ADDED composes where the shown files are; `benchmark.py` alone is a device's.
COMPOSED = [text for text, words in COMMANDS.items() if words[0] in HYDRA and text not in (ADDED, "benchmark.py")]
FIRST = documented(DOCUMENTS[:2])  # those of README.md and CONTRIBUTING.md, which are always composed
# Devices, other launchers, the second half of a sweep, what .ci/run calls as it is, searches that tests/within runs,
# libraries that are not installed, and files of weights that are not here.
NOT_HERE = (
    "hydra/launcher=", " phase=measure$", "^compress.py experiment=quickstart$", "experiment=within", "against_others",
    "my.module", "model.pretrained=true", "device=",
)  # fmt: skip
LONG = [text for text in COMPOSED if not any(re.search(known, text) for known in (*CHAIN, *NOT_HERE))]
# The file of a device that docs/devices.md shows.
BOARD = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "docs" / "devices.md").read_text(), re.M | re.S)[0]
PARSED = [text for text, words in COMMANDS.items() if words[0] in CLICK]


class Composed(BaseException):
    """A sweep came to its jobs. Nothing handles it as an error."""


Compose = Callable[[list[str]], int]


@pytest.fixture
def compose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compose:
    """Composes a command's jobs and counts them.

    All is Hydra's own, launchers' options and sweeps too, but no job is run.

    As in a sweep, jobs that differ in the values of keys alone are composed once.
    """
    jobs: list[object] = []
    checked: list[Sequence[str]] = []
    launcher_of = Plugins.instantiate_launcher

    def check(config: DictConfig) -> None:
        unused = {"hydra", "model"} if config.get("artifact") else {"hydra"}
        ours = OmegaConf.masked_copy(config, [str(key) for key in config if key not in unused])
        OmegaConf.to_container(ours, resolve=True, throw_on_missing=True)
        if "method" in config:
            instantiate(config.method)  # which refuses values that mean nothing

    def check_batch(sweeper: BasicSweeper, batch: Sequence[Sequence[str]]) -> None:
        assert sweeper.hydra_context
        for job in batch:
            check(sweeper.hydra_context.config_loader.load_sweep_config(sweeper.config, list(job)))
            checked.append(job)

    def launcher(plugins: Plugins, *, config: DictConfig, hydra_context: Any, task_function: Any) -> Any:
        launcher_of(plugins, config=config, hydra_context=hydra_context, task_function=task_function)

        def launch(job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> None:
            if job_overrides[0] not in checked:
                check(hydra_context.config_loader.load_sweep_config(config, list(job_overrides[0])))
            jobs.extend(job_overrides)
            raise Composed

        return SimpleNamespace(launch=launch)

    def main_of_job(config: DictConfig) -> None:
        check(config)
        jobs.append(config)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "device").mkdir(parents=True)
    (tmp_path / "conf" / "device" / "board.yaml").write_text(BOARD)
    monkeypatch.setattr(BasicSweeper, "validate_batch_is_legal", check_batch)
    monkeypatch.setattr(Plugins, "instantiate_launcher", launcher)
    monkeypatch.setattr(
        Summary, "on_multirun_start", lambda summary, config, **kwargs: check_end(config)
    )  # it starts MLflow as well
    monkeypatch.setattr("qexp.within_limits.search.check_images", lambda config: "")  # there are none here
    monkeypatch.setattr(qexp.cli, "import_for_good", lambda name: SimpleNamespace(main=main_of_job))

    def composed(words: list[str]) -> int:
        program = words[0] if "/" not in words[0] else "compress.py"
        with contextlib.suppress(Composed):
            code, printed = call([program, *words[1:]])
            assert not code, f"{shlex.join(words)}\n{printed}"
        return len(jobs)

    return composed


@pytest.mark.parametrize(
    "command", [text if text in FIRST else pytest.param(text, marks=pytest.mark.thorough) for text in COMPOSED]
)
def test_every_job_of_it_can_be_composed(command: str, compose: Compose) -> None:
    words = COMMANDS[command]
    jobs = compose(words)
    # Commas in brackets are those of one value.
    values = [re.sub(r"\[.*?\]", "", word).count(",") + 1 for word in words]
    assert jobs == math.prod(values) or "experiment=" in command and jobs > 0


@pytest.mark.integration
@pytest.mark.parametrize("command", PARSED, ids=PARSED)
def test_its_options_are_those_of_that_program(command: str) -> None:
    program, *rest = COMMANDS[command]
    group = import_module(CLICK[program]).cli
    with group.make_context(program, rest) as context:
        while isinstance(context.command, click.Group):
            name, found, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
            context = found.make_context(name, rest, parent=context)


def test_every_extra_that_is_to_be_installed_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"pip\s+install\s+qexp\[([\w,]+)\]", "".join(document.read_text() for document in DOCUMENTS))
    assert len(named) >= 2 and {extra for names in named for extra in names.split(",")} <= extras.keys()


def is_untimed(words: list[str]) -> bool:
    """Whether it is an experiment that measures no latency, which then has no options."""
    names = [word.removeprefix("experiment=") for word in words if word.startswith("experiment=")]
    measures = [OmegaConf.load(CONF / "experiment" / f"{name}.yaml").get("measure", {}) for name in names]
    return any(measure.get("latency", ...) is None for measure in measures)


def quick(words: list[str]) -> list[str]:
    """Overrides that make it a matter of seconds or minutes, whatever it trains and measures."""
    pretend = {"data=random": [], "experiment=torchvision_edge": ["hydra.sweeper.params.batch_size=1"]}  # of five
    if found := {*words} & {*pretend}:
        ours = ["data.images=32", "data.image_size=64", "trainer=cpu", *pretend[found.pop()]]
    else:
        named = (
            ["data.name=pictures"] if any(word.startswith("data.name=") for word in words) else []
        )  # else a baseline of the others'
        ours = ["data=folder", "data.root=pictures", *named, *IMAGES, "data.image_size=32"]  # which VGG needs
    if words[0] == "train.py":
        return ours
    chosen = any(word.startswith(("engine@fp32_engines=", "experiment=")) for word in words)
    absent = (*(("fp32_engines.",) if chosen else ()), *(("measure.latency.",) if is_untimed(words) else ()))
    measured = [word for word in QUICK if not word.startswith(absent)]
    engines = any(word.startswith(("engine=", "experiment=")) for word in words)
    auto = (
        [] if engines else without("engine", "inductor")
    )  # which compiles for a minute, for each network and batch size
    steps = ["method.iterations=20"] if "method=reconstruct" in words else []
    return [
        *ours,
        *measured,
        *auto,
        *steps,
        "train_missing=true",
        *([] if "tracking=server" in words else ["tracking=none"]),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("command", LONG, ids=LONG)
def test_a_long_command_runs_on_small_images(command: str, tmp_path: Path) -> None:
    with working_folder(tmp_path):
        # One row of that table fails, as docs/results.md says.
        run(COMMANDS[command], quick(COMMANDS[command]), may_fail="experiment=lenet5_mnist" in command)
