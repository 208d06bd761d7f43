"""The command of one row composes to the config that the row was made with, and makes one run."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from qexp.places import CONF
from qexp.report.reproduce import command_of
from qexp.report.runs import Run, read_runs
from tests.commands import NOWHERE
from tests.commands import RunCommand as Command
from tests.tiers import more

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("overrides", "rows"),
    [
        *more((["-m", "method=static,mixed", "bits=8,w4a8", "method.first_last_bits=null"], 4)),
        *more((["experiment=observers", "method.first_last_bits=8"], 16)),
        (["method=half"], 1),
        (["-m", "method=static", "threads=1,3"], 2),
    ],
    ids=["sweep", "an experiment that is a sweep", "one run", "threads"],
)
def test_each_row_has_a_command_of_its_own(overrides: list[str], rows: int, run: Command, tmp_path: Path) -> None:
    code, printed = run(*overrides, *NOWHERE)
    assert code == 1, "all rows failed"
    made = read_runs(tmp_path / "outputs", "latest")
    assert len(made) == rows, printed
    commands = [command_of(each) for each in made]
    assert len({*commands}) == rows
    for each, command in zip(made, commands, strict=True):
        python, script, *given = shlex.split(command)
        assert (python, script) == ("python", "compress.py") and "-m" not in given
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("compress", given, return_hydra_config=True)
        assert config.hydra.mode is None or config.hydra.mode.name == "RUN"
        del config.hydra
        assert OmegaConf.to_container(config, resolve=True) == each.record.config


@pytest.mark.thorough
def test_it_makes_one_run(run: Command, tmp_path: Path) -> None:
    run("-m", "method=static,mixed", "bits=8,w4a8", *NOWHERE)
    chosen = read_runs(tmp_path / "outputs", "latest")[2]
    run(*shlex.split(command_of(chosen))[2:])
    (again,) = read_runs(tmp_path / "outputs", "latest")
    assert again.record.config == chosen.record.config and again.record.sweep != chosen.record.sweep


@pytest.mark.thorough
def test_without_hydras_files_only_a_single_command_is_exact(run: Command, tmp_path: Path) -> None:
    run("-m", "method=static,half", *NOWHERE)
    record = read_runs(tmp_path / "outputs", "latest")[0].record
    assert command_of(Run(record, tmp_path / "moved")) == ""
    run("method=static", *NOWHERE)
    record = read_runs(tmp_path / "outputs", "latest")[0].record
    assert command_of(Run(record, tmp_path / "moved")) == record.command
