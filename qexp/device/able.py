"""Says on a device which engines run there.

It is a process of its own, since some engines import their libraries to find out, and it ends before anything is timed.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

from qexp.engine.base import Engine
from qexp.questions import private_output, questions, tell, told
from qexp.types import Unsupported, UserError


def able(target: str, options: dict[str, Any]) -> dict[str, Any]:
    """What an engine needs, and whether it runs here.

    Args:
        target: Dotted name of the engine's class.
        options: Arguments of that class.

    Returns:
        `missing`, its packages that are not installed, and `reason`, why it does not run, or "" if it does.
    """
    module, _, name = target.rpartition(".")
    engine: Engine = getattr(importlib.import_module(module), name)(**options)
    missing = [package for package in engine.packages if find_spec(package) is None]
    try:
        engine.check_machine()
    except (Unsupported, UserError) as reason:
        return {"missing": missing, "reason": str(reason)}
    return {"missing": missing, "reason": ""}


def main() -> None:
    answers, asked = private_output(), questions()
    for question in asked:
        del question["command"]  # there is only one
        answer, _ = told(able, **question)
        tell(answer, answers)


if __name__ == "__main__":
    main()
