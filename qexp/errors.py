"""Errors that the user can put right, shown as one message instead of a traceback."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from qexp.types import UserError, command_line, nearest

CANNOT_WRITE = (errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
Task = Callable[[DictConfig], Any]
LEFT_OPEN: list[Callable[[], None]] = []  # what remains to be done if the command ends with an error

# Former names of command-line keys, and their present names.
RENAMED = {
    "engine@rivals": "engine@fp32_engines",
    "rivals": "fp32_engines",
    "data.batch_size": "recipe.batch_size",
}

# Errors that launchers raise when the process of a job was killed, by the package that raises them.
LOST_WORKERS = {
    "joblib": ("TerminatedWorkerError",),
    "ray": ("WorkerCrashedError", "OutOfMemoryError", "NodeDiedError"),
    "submitit": ("UncompletedJobError",),
}


def report_errors(task: Task) -> Task:
    """Make `task` end the program with a message on stderr and exit code 1 after an error that `explain` can explain.

    A job of a sweep prints the message but raises the error again, so that the other jobs still run.
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
    """End the program with exit code 1 if `explain` has a message for the error, and show it unless it was shown."""
    message = explain(error)
    if message is not None:
        # A message that another process has shown may be in a file that nobody reads, so it is shown again.
        sys.exit(1 if getattr(error, "reported", None) == os.getpid() else f"error: {message}")


def do_what_is_left() -> None:
    """Do what LEFT_OPEN holds, since Hydra does not tell its callbacks about the end of a sweep after a job's error."""
    while LEFT_OPEN:
        with contextlib.suppress(SystemExit):
            LEFT_OPEN.pop()()


def check_words(words: list[str]) -> None:
    """End the program if the command line uses a key by its former name, or asks for the config of a whole sweep."""
    if {"-m", "--multirun"} & {*words} and any(re.match(r"(-c|--cfg)($|=)", word) for word in words):
        sys.exit("error: --cfg shows the config of one run. Leave -m out, and give one value for each key.")
    for word in words:
        given = re.match(r"[+~]*([^=]*)", word)[1]  # type: ignore[index]
        for former, present in RENAMED.items():
            if re.match(rf"{re.escape(former)}(\.|$)", given):
                sys.exit(f"error: {former} is called {present} now. Give {word.replace(former, present, 1)}.")


def to_quote(error: OverrideParseException) -> str:
    """Show how a word is quoted that Hydra's grammar does not read, which a file name may be."""
    name, _, value = error.override.partition("=")
    quoted = shlex.quote(f"{name}={json.dumps(value, ensure_ascii=False)}")
    return (
        f"Hydra cannot read {error.override}: {str(error).splitlines()[0]}. Signs such as = ( ) , in a value need "
        f"quotes that the shell leaves there: {quoted}"
    )


def for_each_choice(words: list[str]) -> list[str]:
    """Let options of a group apply where a sweep has chosen from that group, instead of to the group's default.

    Hydra applies an option with a single value to the default choices before it sweeps, but not one with several, which
    a choice of one is too.
    """
    if not {"-m", "--multirun"} & {*words} or any(word.startswith("hydra/sweeper=") for word in words):
        return words
    several = {word: _has_several_values(word) for word in words if re.match(r"\w[\w.]*=", word)}
    groups = {word.partition("=")[0] for word, swept in several.items() if swept}
    single = {word for word, swept in several.items() if swept is False and {*word.partition(".")[:1]} & groups}
    return [re.sub(r"=(.*)$", r"=choice(\1)", word) if word in single else word for word in words]


def _has_several_values(word: str) -> bool | None:
    """Whether an override of the command line is swept, or None if that cannot be told of it or its value is null.

    A choice of null alone is nothing that Hydra reads.
    """
    try:
        override = OverridesParser.create().parse_override(word)
    except OverrideParseException:
        return None
    swept = override.is_sweep_override()
    return None if not swept and override.value() is None else swept


def explain(error: BaseException) -> str | None:
    """Find the message for an error that the user can put right, or None for any other error, which is a bug.

    With QEXP_DEBUG=1 in the environment, every error counts as a bug and keeps its traceback.
    """
    if os.environ.get("QEXP_DEBUG", "0") != "0":
        return None
    cause: BaseException | None = error
    while cause is not None:  # Hydra wraps the error that a constructor raises
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
    if isinstance(error, OverrideParseException):
        return to_quote(error)
    asked = re.match(r"Could not override '(\S+)'", str(error))
    if asked and isinstance(error.__cause__, ConfigKeyError | ConfigAttributeError):
        return unknown_key(asked[1], error.__cause__)
    if isinstance(error, CompactHydraException | OmegaConfBaseException):
        return f"{error}\n{error.__cause__}" if isinstance(error.__cause__, OmegaConfBaseException) else str(error)
    if isinstance(error, OSError) and error.errno in CANNOT_WRITE:
        return (
            f"Cannot write {error.filename or 'a file'}: {error.strerror}. "
            "Free some space or choose another `outputs=`."
        )
    return None


def unknown_key(asked: str, error: OmegaConfBaseException) -> str:
    """Find the message for a key that the config does not have.

    If the node that should have the key has one of that name further down, as a chain has for each of its stages and a
    method for its fine-tuning, the message names it. Otherwise it lists the keys that may have been meant. Before a
    sweep over choices of a group, Hydra looks its keys up in the group's default, which the message says too.

    Args:
        asked: Key of the command line, dotted.
        error: What OmegaConf raised for it, which knows the config.
    """
    node = error.parent_node
    assert isinstance(node, DictConfig)
    place = f"{node._get_full_key(None)}."  # the last node on the way to the key that exists
    if asked == place[:-1]:  # it was given as {key: value, ...}
        return f"There is no {asked}.{error.key}. To give {asked} keys of its own, put + before it: +{asked}={{...}}."
    name = asked.removeprefix(place)
    below = [f"{place}{path}" for path in paths(node) if path.endswith(f".{name}")] if name != asked else []
    if below:
        return f"There is no {asked} here, but {' and '.join(below)}."
    known = [key for key in map(str, node) if key != "hydra" and not key.startswith("_")]
    there = nearest(str(error.key), known) if known else f"{place[:-1]} has no keys with these choices."
    group = asked.partition(".")[0]
    swept = next((word for word in sys.argv[1:] if re.match(rf"{re.escape(group)}=[^,]+,", word)), None)
    added = (
        f"With {swept}, keys are looked up in the default {group}. Put ++ before the key if all of these have it."
        if swept
        else "To add a key that qexp does not know, put + before it."
    )
    return f"There is no {asked}: {there}\n{added}"


def paths(config: DictConfig, above: str = "") -> list[str]:
    """Dotted paths of all keys of a config, such as `method.stages.prune`, except those below `hydra`."""
    found = []
    for key in map(str, config):
        node = config._get_node(key)
        found.append(f"{above}{key}")
        found += (
            paths(node, f"{above}{key}.")
            if isinstance(node, DictConfig) and not node._is_none() and key != "hydra"
            else []
        )
    return found
