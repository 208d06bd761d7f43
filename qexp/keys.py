"""Makes keys: names under which results are kept and found again, made from all that decides them, code included.

A result that is found by its key is never computed again, so a key that leaves something out would pass off an old
result as a new one. Three rules prevent that: every value is digested or refused, the code that takes part is found by
following its imports, and whatever a value names by `_target_` is code that takes part.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from qexp.sources import code_digests


def key(kind: str, *, code: Iterable[object] = (), without: Iterable[str] = (), **decides: Any) -> str:
    """Make the key of a result.

    Args:
        kind: What the result is. Two kinds never share a key.
        code: Code that takes part although no value names it: dotted names of modules, of packages (all their modules
            count) or of classes, or objects, whose classes count.
        without: Dotted names of modules and packages whose code does not count and whose imports are not followed.
        **decides: Values that decide the result, of the types that `plain` takes. The code of objects and of config
            nodes among them counts too.

    Returns:
        The key, as 64 hexadecimal digits.

    Raises:
        TypeError: A value cannot be digested, or `code` is a string.
        ModuleNotFoundError: Code that takes part cannot be found.
    """
    if isinstance(code, str):
        raise TypeError(f"code={code!r} is one name; give a list of names.")
    values = plain(decides, kind)
    roots = {*(name if isinstance(name, str) else _class_name(name) for name in code), *_targets(values)}
    python = ".".join(map(str, sys.version_info[:2]))
    made = [kind, python, values, code_digests(roots, without)]
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


def plain(value: Any, where: str) -> Any:
    """Turn a value into one that JSON can hold, so that equal values give equal text.

    An object whose property `options` says what decides it becomes a dict: its class as `_target_`, and
    what decides it.

    Args:
        value: None, a bool, a number, a string, a list, a tuple, a dict with strings as keys, a frozen dataclass, or an
            object with a property `options`.
        where: What the error calls the value.

    Raises:
        TypeError: The value, or something in it, is of another type.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {name: plain(item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(getattr(type(value), "options", None), property):
        return {"_target_": _class_name(value), **plain(value.options, where)}
    if is_dataclass(value) and not isinstance(value, type) and vars(type(value))["__dataclass_params__"].frozen:
        return {field.name: plain(getattr(value, field.name), f"{where}.{field.name}") for field in fields(value)}
    raise TypeError(
        f"{where} is {value!r} of the type {type(value).__name__}, of which no key can be made. Give a plain value (a "
        "number, a string, a list, a dict with strings as keys), or an object whose property `options` says in plain "
        "values what decides it."
    )


def _class_name(value: object) -> str:
    kind = value if isinstance(value, type) else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def _targets(values: Any) -> Iterator[str]:
    """Every `_target_` in plain values, except those that a config leaves open with `???`."""
    if isinstance(values, dict):
        if isinstance(target := values.get("_target_"), str) and target != "???":
            yield target
        values = list(values.values())
    if isinstance(values, list):
        for value in values:
            yield from _targets(value)
