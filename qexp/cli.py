"""The command line of the entry scripts: Hydra's, with errors shown as messages."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from collections.abc import Callable
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from qexp.errors import LEFT_OPEN, check_words, do_what_is_left, end_if_explained, for_each_choice, report_errors
from qexp.places import CONF
from qexp.startup import collector_at_rest, import_for_good
from qexp.types import command_line
from qexp.worker import Portable


def program(name: str) -> Callable[[], None]:
    """Make the program that `hydra.main` builds for `conf/NAME.yaml`, which runs `qexp.jobs.NAME.main` on every config.

    That module is imported only when there is a job to run, because it imports torch. Showing the help or a config and
    refusing a command line therefore take less than a second. Errors in the command line (an unknown model, a misspelt
    key) and errors of a job end the program as `report_errors` says.

    Args:
        name: `train`, `compress` or `benchmark`.

    Returns:
        The program, a function without arguments.
    """

    @report_errors
    def run(config: DictConfig) -> Any:
        return import_for_good(f"qexp.jobs.{name}").main(config)

    run_hydra = hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(Portable(run))

    def main() -> None:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # or Ray would merge lines that differ only in numbers
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
        # Hydra accepts this flag only in front of the overrides.
        sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))
        check_words(sys.argv[1:])
        sys.argv[1:] = for_each_choice(sys.argv[1:])
        LEFT_OPEN.clear()
        try:
            with collector_at_rest():  # until the job's libraries are imported
                run_hydra()
        except KeyboardInterrupt:
            print(f"\nInterrupted. What is finished is kept; to go on: {command_line()}", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)
        except Exception as error:
            do_what_is_left()
            end_if_explained(error)
            raise

    return main


def same_choices(script: str, groups: str = "model|data|outputs|recipe|trainer") -> str:
    """Return the command that runs another script with this job's choices.

    Args:
        script: File name of the script.
        groups: The config groups whose choices are taken over, separated by `|`.
    """
    chosen = [override for override in HydraConfig.get().overrides.task if re.match(rf"[+~]*({groups})\b", override)]
    return shlex.join(["python", script, *chosen])
