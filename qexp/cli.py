"""The command line of the entry scripts: Hydra's, with errors shown as messages."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from qexp.errors import LEFT_OPEN, check_renamed, do_what_is_left, end_if_explained, report_errors
from qexp.types import command_line
from qexp.worker import Portable

CONF = Path(__file__).parents[1] / "conf"


def program(name: str) -> Callable[[], None]:
    """The program of `conf/NAME.yaml`, as `hydra.main` makes it, which runs `qexp.jobs.NAME.main` on every config.

    That module is imported for a job only, since it brings torch: help, configs and a refused command line take no second.
    Errors in the command line (an unknown model, a misspelt key) and those of a job end it as `report_errors` says.
    """

    @report_errors
    def run(config: DictConfig) -> Any:
        return job_module(f"qexp.jobs.{name}").main(config)

    run_hydra = hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(Portable(run))

    def main() -> None:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # Ray takes lines that differ only in numbers for one
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
        sys.argv[1:] = sorted(
            sys.argv[1:], key=lambda word: word not in ("-m", "--multirun")
        )  # Hydra takes it at the front only
        check_renamed(sys.argv[1:])
        LEFT_OPEN.clear()
        gc.disable()  # until the libraries are imported: the collector would go through all that they make, again and again
        try:
            run_hydra()
        except KeyboardInterrupt:
            print(f"\nInterrupted. What is finished is kept; to go on: {command_line()}", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)
        except Exception as error:
            do_what_is_left()
            end_if_explained(error)
            raise
        finally:
            gc.enable()

    return main


def job_module(name: str) -> ModuleType:
    """The module. What it imports, torch above all, is left out of the garbage collector's rounds, which would take a second each."""
    if name not in sys.modules:
        importlib.import_module(name)
        gc.freeze()
        atexit.register(
            gc.unfreeze
        )  # some of the libraries' C++ parts print all that they find still there at the very end
    gc.enable()
    return sys.modules[name]


def end_at_once() -> NoReturn:
    """End a program that did all it had to, as multiprocessing ends its processes: threads and exit handlers come to their end, but
    the interpreter does not look for garbage among all objects of all libraries, which takes two seconds."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)


def same_choices(script: str, groups: str = "model|data|outputs|recipe|trainer") -> str:
    """The command that runs `script` with this job's choices of the given config groups."""
    chosen = [override for override in HydraConfig.get().overrides.task if re.match(rf"[+~]*({groups})\b", override)]
    return shlex.join(["python", script, *chosen])
