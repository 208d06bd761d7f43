"""A sweep of every combination is checked before its first job, with no more work than that takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from tests.commands import FEW_WINDOWS, PRETEND, RunCommand, fake

SWEEP = ["-m", *PRETEND, *fake("Fake"), *FEW_WINDOWS, "tracking=none"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=none,static", "method.sparsity=0.5"], "There is no method.sparsity with any of method=none,static:"),
        (["batch_size=1,2", "model=resnet8,resnet9"], "There is no model=resnet9"),
        (
            ["method=prune_channels_static", "method.ratio=2,3"],
            "There is no method.ratio here, but method.stages.prune_channels.ratio.",
        ),
        (["method=none,prune", "method.sparsty=0.5,0.6"], "did you mean 'method.sparsity'"),
        (["batch_sise=1,2"], "There is no batch_sise: did you mean 'batch_size'"),
    ],
)
def test_a_combination_that_cannot_be_is_told_before_anything_runs(
    run: RunCommand, tmp_path: Path, words: list[str], message: str
) -> None:
    code, printed = run(*SWEEP, *words)
    assert code == 1 and message in printed and "finished in" not in printed
    assert not list((tmp_path / "outputs").glob("sweeps/*/*/record.json"))


def test_an_option_is_for_the_choices_that_have_it(run: RunCommand, tmp_path: Path) -> None:
    options = ["method=none,prune", "method.sparsity=0.5,0.6", "method.recipe.epochs=0"]
    code, printed = run(*SWEEP, *options, "phase=compress")
    assert code == 0 and "at most 4 runs: method none, prune × method.sparsity 0.5, 0.6\n" in printed, printed
    assert "method.sparsity is for prune: none has no such option" in printed
    made = [json.loads(file.read_text()) for file in (tmp_path / "outputs").glob("sweeps/*/*/record.json")]
    assert sorted(record["label"].split(" · ")[1] for record in made) == ["fp32", "prune 50%", "prune 60%"]
    assert {record["config"]["method"].get("recipe", {}).get("epochs") for record in made} == {None, 0}


@pytest.mark.thorough
def test_jobs_that_differ_in_values_alone_are_checked_once(run: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    composed, compose = [], ConfigLoaderImpl.load_sweep_config

    def counted(loader: ConfigLoaderImpl, master_config: Any, sweep_overrides: list[str]) -> Any:
        composed.append([word for word in sweep_overrides if word.split("=")[0] in ("method", "batch_size", "seed")])
        return compose(loader, master_config, sweep_overrides)

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", counted)
    code, printed = run(*SWEEP, "method=none,static", "batch_size=1,2", "seed=0,1", "phase=compress")
    assert code == 0, printed
    jobs = [[f"method={m}", f"batch_size={b}", f"seed={s}"] for m in ("none", "static") for b in (1, 2) for s in (0, 1)]
    assert composed == [jobs[0], jobs[4], *jobs]


def test_a_program_that_ends_at_once_lets_threads_and_exit_handlers_finish() -> None:
    program = """
import atexit, threading, time
from qexp.startup import end_at_once
atexit.register(print, "handler")
threading.Thread(target=lambda: (time.sleep(0.2), print("thread", end=" "))).start()
end_at_once()
print("never")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "thread handler\n", "")
