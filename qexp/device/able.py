"""Says on a device which engines run there: `python -m qexp.device.able ENGINES`, where ENGINES is JSON.

It runs in a process of its own, since some engines import their libraries to find out.
"""

from __future__ import annotations

import importlib
import json
import sys
from importlib.util import find_spec
from typing import Any

from qexp.engine.base import Engine
from qexp.types import Unsupported, UserError, versions


def able(target: str, options: dict[str, Any]) -> dict[str, Any]:
    """What an engine needs, and whether it runs here.

    Args:
        target: Dotted name of the engine's class.
        options: Arguments of that class.

    Returns:
        `missing`, its packages that are not installed, `versions` of the others, and `reason`, why it does not run, or
        an empty string if it does.
    """
    module, _, name = target.rpartition(".")
    engine: Engine = getattr(importlib.import_module(module), name)(**options)
    found = {
        "missing": [package for package in engine.packages if find_spec(package) is None],
        "versions": versions(*engine.packages),
    }
    try:
        engine.check_machine()
    except (Unsupported, UserError) as reason:
        return {**found, "reason": str(reason)}
    return {**found, "reason": ""}


if __name__ == "__main__":
    print(json.dumps([able(**engine) for engine in json.loads(sys.argv[1])]))
