"""Finds the command that repeats a single run of a sweep."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import yaml

from qexp.report.runs import Run

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C loader is ten times as fast, but PyYAML may lack it


def command_of(run: Run) -> str:
    """The command that repeats a run, as a line for a shell.

    It has the job's own overrides, which Hydra wrote beside the record, and the number of threads that the run used. If
    those files are lost, it is the command in the record, provided that it made only this run. Otherwise it is empty.
    Of a run of a Python program it is the call.
    """
    record, hydra = run.record, run.folder / ".hydra"
    if record.command.startswith("qexp."):  # no command line has the objects of a Python program
        return record.command
    words = shlex.split(record.command)
    several = any(word in ("-m", "--multirun") for word in words)
    try:
        overrides: list[str] = _read(hydra / "overrides.yaml")
        swept = _read(hydra / "hydra.yaml")["hydra"]["mode"] == "MULTIRUN" and not several
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return "" if several else record.command
    if "threads" in record.params and not any(override.startswith("threads=") for override in overrides):
        overrides = [*overrides, f"threads={record.params['threads']}"]
    # A command without -m can still be a sweep, because an experiment may ask for one itself.
    called = ["qexp", record.kind] if words[:1] == ["qexp"] else ["python", f"{record.kind}.py"]
    return shlex.join([*called, *overrides, *(["hydra.mode=RUN"] if swept else [])])


def _read(file: Path) -> Any:
    return yaml.load(file.read_text(), LOADER)
