"""Every command that README.md, CONTRIBUTING.md and docs/ give is one that works today.

Commands of Hydra's programs are composed as they stand, job by job; tests/test_documented_way.py really runs the short ones; and
ELSEWHERE says of the others who does. A command that is none of these, or that has a placeholder nobody knows, is a failure.
"""

from __future__ import annotations

import contextlib
import math
import os
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
from tests.commands import QUICK, without
from tests.documents import COMMANDS, DOCUMENTS, HYDRA, ROOT, call, fill_in
from tests.test_documented_way import ADDED, CHAIN, IMAGES, run, working_folder

CLICK = {
    "mlflow": "mlflow.cli",
    "ray": "ray.scripts.scripts",
}  # programs whose options can be parsed without doing what they say

# Commands that are no part of CHAIN: who runs them, a word that shows it, and why it is there or what is left out.
ELSEWHERE = {
    r"^pip install uv$": (".ci/run", "pip install --quiet uv", "installs what these tests run in"),
    r"^pip install 'qexp\[": (
        "pyproject.toml",
        "[project.optional-dependencies]",
        "the same; whether the extras exist is tested here",
    ),
    r"^uv sync$": (".ci/run", "uv run pytest", "the same environment, which `uv run` makes"),
    r"^(pytest|ruff check|mypy)$": (".ci/run", "uv run", "they take minutes, or are what runs this"),
    r"^compress.py experiment=quickstart$": (".ci/run", "compress.py experiment=quickstart", "two minutes"),
    r"^tests/cluster/slurm.sh (start|stop) ": (
        ".ci/run",
        "tests/cluster/slurm.sh start",
        "needs root and Debian's packages",
    ),
    r"^export SLURM_CONF=": (".ci/run", "export SLURM_CONF=$slurm/slurm.conf PATH=$slurm/bin:$PATH", "of such a Slurm"),
    r"^pytest tests/test_launchers.py$": (".ci/run", "QEXP_SLURM=main", "of such a Slurm"),
    r"hydra/launcher=submitit_slurm": ("tests/test_launchers.py", '"submitit_slurm"', "needs Slurm"),
    r"hydra/launcher=joblib": ("tests/test_launchers.py", '"joblib"', "sweeps pretend images and compares the rows"),
    r" phase=measure$": ("tests/test_reuse.py", "phase=measure", "after phase=compress"),
    r"hydra/launcher=ray": ("tests/test_launchers.py", '"ray"', "the same, on a Ray of its own"),
    r"^ray ": (
        "tests/test_launchers.py",
        "hydra.launcher.ray",
        "several machines: no test has a cluster, here its options are parsed",
    ),
    r"^export RAY_AUTH_MODE=token$": (
        "ray/_private/authentication/authentication_token_setup.py",
        "RAY_AUTH_MODE",
        "the same",
    ),
    r"^sudo apt-get install .* postgresql$": (".ci/run", "--no-install-recommends postgresql", "needs root"),
    r"^sudo service postgresql start$": (
        "tests/cluster/postgres.sh",
        "bin/pg_ctl",
        "needs root; there without a service",
    ),
    r"^sudo -u postgres psql ": (
        "tests/cluster/postgres.sh",
        "bin/createdb",
        "needs root; there with PostgreSQL's other programs",
    ),
    r"^export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=": (
        "mlflow/environment_variables.py",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION",
        "its name",
    ),
    r"^mlflow (ui|server) ": (
        "tests/tracking/test_server.py",
        "mlflow.server.fastapi_app",
        "does not end; here its options are parsed",
    ),
    r"^export MLFLOW_TRACKING_URI=": ("tests/test_serving.py", '"MLFLOW_TRACKING_URI"', "of the next"),
    r"^mlflow models serve ": ("tests/test_serving.py", '"models", "serve", "-m"', "does not end"),
    r"^curl http://127.0.0.1:5001/invocations ": ("tests/test_serving.py", "/invocations", "asks that server"),
    r"^pip install -r requirements.txt$": (
        "tests/deploy/test_deploy.py",
        '"pip", "install"',
        "needs a package registry",
    ),
    r"^infer.py photo.jpg$": ("tests/deploy/test_deploy.py", '"infer.py"', "where qexp and torch are not there"),
    r"^benchmark.py$": ("tests/deploy/test_deploy.py", '"benchmark.py"', "that of a device, not qexp's"),
    r"^-m qexp.tracking import record.json$": (
        "tests/deploy/test_deploy.py",
        '"import"',
        "a record of that benchmark.py",
    ),
    r"^docs/one_convolution.py$": (
        "tests/test_docs.py",
        "from one_convolution import sections",
        "compares what it prints",
    ),
}

# ADDED composes where the shown files are; `benchmark.py` alone is a device's.
COMPOSED = [text for text, words in COMMANDS.items() if words[0] in HYDRA and text not in (ADDED, "benchmark.py")]
LONG = [
    text
    for text in COMPOSED
    if not any(re.search(known, text) for known in (*CHAIN, *ELSEWHERE)) and "against_others" not in text
]
OTHERS = [text for text in COMMANDS if text not in COMPOSED]
PARSED = [text for text in OTHERS if COMMANDS[text][0] in CLICK]


class Composed(BaseException):
    """A sweep came to its jobs. Nothing handles it as an error."""


Compose = Callable[[list[str]], int]


@pytest.fixture
def compose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compose:
    """Composes a command's jobs and counts them. All is Hydra's own, launchers' options and sweeps too, but no job is run.

    As in a sweep, jobs that differ in the values of keys alone are composed once.
    """
    jobs: list[object] = []
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

    def launcher(plugins: Plugins, *, config: DictConfig, hydra_context: Any, task_function: Any) -> Any:
        launcher_of(plugins, config=config, hydra_context=hydra_context, task_function=task_function)

        def launch(job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> None:
            check(hydra_context.config_loader.load_sweep_config(config, list(job_overrides[0])))
            jobs.extend(job_overrides)
            raise Composed

        return SimpleNamespace(launch=launch)

    def main_of_job(config: DictConfig) -> None:
        check(config)
        jobs.append(config)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(BasicSweeper, "validate_batch_is_legal", check_batch)
    monkeypatch.setattr(Plugins, "instantiate_launcher", launcher)
    monkeypatch.setattr(
        Summary, "on_multirun_start", lambda summary, config, **kwargs: check_end(config)
    )  # it starts MLflow as well
    monkeypatch.setattr(qexp.cli, "import_for_good", lambda name: SimpleNamespace(main=main_of_job))

    def composed(words: list[str]) -> int:
        program = words[0] if "/" not in words[0] else "compress.py"
        with contextlib.suppress(Composed):
            code, printed = call([program, *words[1:]])
            assert not code, f"{shlex.join(words)}\n{printed}"
        return len(jobs)

    return composed


@pytest.mark.parametrize("command", COMPOSED, ids=COMPOSED)
def test_every_job_of_it_can_be_composed(command: str, compose: Compose) -> None:
    words = COMMANDS[command]
    jobs = compose(words)
    assert jobs == math.prod(word.count(",") + 1 for word in words) or "experiment=" in command and jobs > 0


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("model=resnet20,resnet21", "resnet21"),
        ("method.observr=mse", "observr"),
        ("method.observer=mze", "mze"),
        ("experiment=quick", "quick"),
        ("hydra.launcher.n_job=2", "n_job"),
    ],
)
def test_what_cannot_be_composed_is_found(wrong: str, named: str, compose: Compose) -> None:
    with pytest.raises(AssertionError, match=named):
        compose(["compress.py", "-m", "model=resnet20", "data=digits", "hydra/launcher=joblib", wrong])


def test_a_placeholder_that_nobody_knows_is_found() -> None:
    with pytest.raises(AssertionError, match="PLACEHOLDERS has nothing for FOLDER"):
        fill_in(["train.py", "data.root=FOLDER"])


@pytest.mark.parametrize("command", OTHERS, ids=OTHERS)
def test_every_other_command_is_run_here_or_elsewhere(command: str) -> None:
    assert any(re.search(known, command) for known in (*CHAIN, *ELSEWHERE)), "no test runs it, here or ELSEWHERE"


@pytest.mark.parametrize("known", [*CHAIN, *ELSEWHERE], ids=[*CHAIN, *ELSEWHERE])
def test_what_the_tables_speak_of_is_documented(known: str) -> None:
    assert any(re.search(known, command) for command in COMMANDS)


@pytest.mark.parametrize(("file", "word", "why"), [*ELSEWHERE.values()], ids=[*ELSEWHERE])
def test_elsewhere_it_is_there(file: str, word: str, why: str) -> None:
    installed = Path(str(pytest.__file__)).parents[1]
    assert why and word in next(place / file for place in (ROOT, installed) if (place / file).exists()).read_text()


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
    measures = [OmegaConf.load(ROOT / "conf" / "experiment" / f"{name}.yaml").get("measure", {}) for name in names]
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
@pytest.mark.skipif("QEXP_SLOW" not in os.environ, reason="takes minutes: set QEXP_SLOW=1")
@pytest.mark.parametrize("command", LONG, ids=LONG)
def test_a_long_command_runs_on_small_images(command: str, tmp_path: Path) -> None:
    with working_folder(tmp_path):
        # One row of that table fails, as docs/results.md says.
        run(COMMANDS[command], quick(COMMANDS[command]), may_fail="experiment=lenet5_mnist" in command)
