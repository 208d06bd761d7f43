"""The command line of the entry scripts: Hydra's, with errors shown as messages."""

from __future__ import annotations

import functools
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig

from qexp.errors import LEFT_OPEN, do_what_is_left, end_if_explained, report_errors
from qexp.types import command_line
from qexp.worker import Portable, Task

CONF = Path(__file__).parents[1] / "conf"


def command(config_name: str) -> Callable[[Task], Callable[[], None]]:
    """Decorator that makes a function of the config the program of `conf/CONFIG_NAME.yaml`, as `hydra.main` does.

    Errors in the command line (an unknown model, a misspelt key) and those of the task end it as `report_errors` says.
    """

    def decorate(task: Task) -> Callable[[], None]:
        program = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(Portable(report_errors(task)))

        @functools.wraps(task)
        def main() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them
            os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # Ray takes lines that differ only in numbers for one
            os.environ.setdefault("RAY_COLOR_PREFIX", "0")
            sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))  # Hydra takes it at the front only
            LEFT_OPEN.clear()
            try:
                program()
            except KeyboardInterrupt:
                print(f"\nInterrupted. What is finished is kept; to go on: {command_line()}", file=sys.stderr)
                sys.exit(128 + signal.SIGINT)
            except Exception as error:
                do_what_is_left()
                end_if_explained(error)
                raise

        return main

    return decorate


def same_choices(script: str, groups: str = "model|data|outputs|recipe|trainer") -> str:
    """The command that runs `script` with this job's choices of the given config groups."""
    chosen = [override for override in HydraConfig.get().overrides.task if re.match(rf"[+~]*({groups})\b", override)]
    return shlex.join(["python", script, *chosen])
