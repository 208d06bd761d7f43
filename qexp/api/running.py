"""Runs jobs of the command line inside another program, whose own Hydra and random numbers stay as they were."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.types import RunMode
from omegaconf import DictConfig

from qexp.errors import do_what_is_left, explain, for_each_choice
from qexp.jobs.given import Given
from qexp.jobs.run import sweep_folder
from qexp.measure.children import NURSERIES, PERSISTENT
from qexp.places import CONF
from qexp.types import UserError

P = ParamSpec("P")
T = TypeVar("T")
OF_A_PROGRAM = (GlobalHydra, HydraConfig, JobRuntime, version.VersionBase)  # what Hydra keeps of one program
SAME_LOGGING = ("hydra/job_logging=none", "hydra/hydra_logging=none")  # as the program has set it up
ELSEWHERE = ("hydra/launcher=", "trainer=ddp")
COMMANDS = "Use train.py or compress.py for that, with model._target_=MODULE.CLASS"
# Of programs that end with a summary: what came out is returned instead of printed.
SUMMARY = dict.fromkeys(("compress", "benchmark"), ("hydra.callbacks.summary.shows=false",))


def composed(program: str, words: Sequence[str]) -> DictConfig:
    """Compose the config of a program, such as `compress`.

    Raises:
        UserError: An override is wrong.
    """
    with explained(), own_hydra(program) as hydra:
        return hydra.compose_config(program, [*words], run_mode=RunMode.RUN, with_log_configuration=False)


def run(program: str, words: Sequence[str], given: Given) -> tuple[Path, list[Any]]:
    """Run the jobs of a command as `-m` does.

    Args:
        program: Name of the config and of the job, such as `compress`.
        words: Overrides as on the command line.
        given: Objects that stand in for nodes of the config.

    Returns:
        The folder of the sweep, and what each job returned.

    Raises:
        UserError: The command cannot be run. What becomes of each job is in its record.
    """
    for word in words:
        if word.startswith(ELSEWHERE):
            raise UserError(f"{word} starts other processes, which the objects of a program do not reach. {COMMANDS}.")
    folders, returned, failures = list[Path](), list[Any](), list[UserError]()

    def task(config: DictConfig) -> None:
        folders.append(sweep_folder())
        try:
            returned.append(import_module(f"qexp.jobs.{program}").main(config, given))
        except UserError as error:  # of a training, which has no record
            failures.append(error)

    several = [*for_each_choice(["-m", *words])[1:], *SAME_LOGGING, *SUMMARY.get(program, ())]
    with explained(), own_hydra(program) as hydra, same_random_numbers():
        try:
            hydra.multirun(program, task, several, with_log_configuration=False)
        except BaseException:
            do_what_is_left()
            raise
        finally:
            PERSISTENT.stop()
            NURSERIES.stop()
    if failures:
        raise failures[0]
    return folders[0], returned


@contextlib.contextmanager
def own_hydra(program: str) -> Iterator[Hydra]:
    """Hydra for one command. That of the program around, with its config, is put back afterwards."""
    instances: Any = Singleton._instances
    others = {kind: instances.pop(kind) for kind in OF_A_PROGRAM if kind in instances}
    try:
        version.setbase("1.3")
        yield Hydra.create_main_hydra2(program, create_config_search_path(str(CONF)))
    finally:
        for kind in OF_A_PROGRAM:
            instances.pop(kind, None)
        instances.update(others)


@contextlib.contextmanager
def same_random_numbers() -> Iterator[None]:
    """Let a program's random numbers go on as if nothing had drawn any meanwhile."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def told_alone(function: Callable[P, T]) -> Callable[P, T]:
    """Let a public function raise a UserError without the way that it took through qexp, which tells a user nothing."""

    @functools.wraps(function)
    def public(*args: P.args, **kwargs: P.kwargs) -> T:
        __tracebackhide__ = True  # of notebooks and of pytest
        try:
            return function(*args, **kwargs)
        except UserError as error:
            message = str(error)
        raise UserError(message)

    return public


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn errors that the caller can put right into a UserError with their message alone.

    Raises:
        UserError: One of them was raised.
    """
    try:
        yield
    except SystemExit as end:  # as the command line ends
        raise UserError(str(end.code).removeprefix("error: ")) from None
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        raise UserError(message) from None
