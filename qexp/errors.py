"""Errors that the user can put right, shown as one message instead of a traceback."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from qexp.types import UserError, command_line, nearest

CANNOT_WRITE = (errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
Task = Callable[[DictConfig], Any]
LEFT_OPEN: list[Callable[[], None]] = []  # what is still to be done where the command ends by an error

# Keys of the command line by their former names.
RENAMED = {"engine@rivals": "engine@fp32_engines", "rivals": "fp32_engines", "data.batch_size": "recipe.batch_size"}

# What launchers raise in place of a job whose process was killed, by the packages that do.
LOST_WORKERS = {
    "joblib": ("TerminatedWorkerError",),
    "ray": ("WorkerCrashedError", "OutOfMemoryError", "NodeDiedError"),
    "submitit": ("UncompletedJobError",),
}


def report_errors(task: Task) -> Task:
    """`task`, ended by a message on stderr and exit code 1 for an error that `explain` explains.

    As a job of a sweep it prints the message and raises on, so that the other jobs still run.
    """

    @functools.wraps(task)
    def reporting(config: DictConfig) -> Any:
        try:
            return task(config)
        except Exception as error:
            if not (HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN):
                end_if_explained(error)
            elif (message := explain(error)) is not None:
                print(f"error: {message}", file=sys.stderr)
                error.reported = os.getpid()  # type: ignore[attr-defined]
            raise

    return reporting


def end_if_explained(error: Exception) -> None:
    """End the program with the error's message and exit code 1, where it has one that was not shown yet."""
    message = explain(error)
    if message is not None:
        # What another process has shown may lie in a file that nobody reads.
        sys.exit(1 if getattr(error, "reported", None) == os.getpid() else f"error: {message}")


def do_what_is_left() -> None:
    """Hydra tells its callbacks of the end of a sweep only where no job ended by an error."""
    while LEFT_OPEN:
        with contextlib.suppress(SystemExit):
            LEFT_OPEN.pop()()


def check_renamed(words: list[str]) -> None:
    """End the program where a word of the command line has a key under its former name, with the present one."""
    for word in words:
        given = re.match(r"[+~]*([^=]*)", word)[1]  # type: ignore[index]
        for former, present in RENAMED.items():
            if re.match(rf"{re.escape(former)}(\.|$)", given):
                sys.exit(f"error: {former} is called {present} now. Give {word.replace(former, present, 1)}.")


def explain(error: BaseException) -> str | None:
    """The message for an error that the user can put right; None for any other, which is a bug.

    With QEXP_DEBUG=1 in the environment every error is taken for a bug, and keeps its traceback.
    """
    if os.environ.get("QEXP_DEBUG", "0") != "0":
        return None
    cause: BaseException | None = error
    while cause is not None:  # Hydra wraps what a constructor raises
        if isinstance(cause, UserError):
            return str(cause)
        cause = cause.__cause__
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return f"There is no {group}={name}: {nearest(name, (o for o in error.options if not o.startswith('_')))}"
    unset = re.search(r"Missing mandatory value: (\S+)", str(error))
    if unset:
        choice = "model=NAME (a file of conf/model), or " if unset[1] == "model._target_" else ""
        return f"{unset[1]} is not set. Give {choice}{unset[1]}=VALUE."
    missing = re.search(r"Unknown plugin class : 'hydra_plugins\.hydra_(\w+)_launcher\.", str(error))
    if missing:
        extra = {"submitit": "slurm"}.get(missing[1], missing[1])
        return f"This launcher is not installed: pip install qexp[{extra}]"
    if type(error).__name__ in LOST_WORKERS.get(type(error).__module__.split(".")[0], ()):
        reason = str(error).strip().partition("\n")[0]
        return f"A job's process was lost: {reason}\nWhat is finished is kept; to go on: {command_line()}"
    asked = re.match(r"Could not override '(\S+)'", str(error))
    if asked and isinstance(error.__cause__, ConfigKeyError | ConfigAttributeError):
        return unknown_key(asked[1], error.__cause__)
    if isinstance(error, CompactHydraException | OmegaConfBaseException):
        return f"{error}\n{error.__cause__}" if isinstance(error.__cause__, OmegaConfBaseException) else str(error)
    if isinstance(error, OSError) and error.errno in CANNOT_WRITE:
        return f"Cannot write {error.filename or 'a file'}: {error.strerror}. Free some space or choose another `outputs=`."
    return None


def unknown_key(asked: str, error: OmegaConfBaseException) -> str:
    """The message for a key that the config does not have: where its node has one of that name further down, such as a chain for each
    of its stages and a method for its fine-tuning, or what it may have been meant to be."""
    node = error.parent_node
    assert isinstance(node, DictConfig)
    place = f"{node._get_full_key(None)}."  # of the last node on the way to the key that there is
    name = asked.removeprefix(place)
    below = [f"{place}{path}" for path in _paths(node) if path.endswith(f".{name}")] if name != asked else []
    if below:
        return f"There is no {asked} here, but {' and '.join(below)}."
    known = [key for key in map(str, node) if key != "hydra" and not key.startswith("_")]
    return (
        f"There is no {asked}: {nearest(str(error.key), known)}\nTo add a key that qexp does not know, put + before it."
    )


def _paths(config: DictConfig, above: str = "") -> list[str]:
    """Of all keys of a config, such as `method.stages.prune`."""
    found = []
    for key in map(str, config):
        node = config._get_node(key)
        found.append(f"{above}{key}")
        found += (
            _paths(node, f"{above}{key}.")
            if isinstance(node, DictConfig) and not node._is_none() and key != "hydra"
            else []
        )
    return found
