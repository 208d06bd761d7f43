"""The file that loads a network on a device holds every function that loading calls."""

from __future__ import annotations

import builtins
import dis
import re
from types import CodeType, FunctionType
from typing import Any

import pytest

from qexp.deploy.write import engine_source
from tests.engine.support import NAMES, engine_named


def global_names(code: CodeType) -> set[str]:
    """The names that a function and those inside it look up outside of themselves."""
    own = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return own.union(*(global_names(inner) for inner in code.co_consts if isinstance(inner, CodeType)))


@pytest.mark.parametrize("name", NAMES)
def test_all_that_a_loading_function_calls_is_copied_once(name: str) -> None:
    load = engine_named(name).standalone()
    assert load is not None
    source, module = engine_source(load.func), dict[str, Any]()
    exec(source, module)
    functions = {key: value for key, value in module.items() if isinstance(value, FunctionType)}
    assert module["load"] is functions[load.func.__name__]
    needed = set().union(*(global_names(function.__code__) for function in functions.values()))
    assert needed <= {*module, *vars(builtins)}
    copied = re.findall(r"^def (\w+)", source, re.MULTILINE)
    assert len(copied) == len({*copied}) == len(functions) - 1 and {*copied} - {load.func.__name__} <= needed
