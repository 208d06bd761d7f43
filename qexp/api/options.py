"""What keywords of a call are in the config, and values of Python as Hydra's overrides."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from qexp.api.running import composed
from qexp.places import choices
from qexp.types import UserError, nearest

Words = dict[str, str]  # overrides by their keys
OF_A_METHOD = ("method", "bits")  # keys that say how one network is compressed
WORD = re.compile(r"[A-Za-z_][\w./-]*")
OTHERWISE_READ = ("null", "true", "false", "nan", "inf")  # words that are no strings to Hydra
RENAMED = {"engines": "engine"}


def words_of(
    program: str, nodes: Mapping[str, str], options: Mapping[str, Any], overrides: Sequence[str], sweeps: bool = False
) -> tuple[Words, list[str]]:
    """Find out which keys of the config the keywords of a call are.

    A keyword is a key of the config itself, such as `bits` or `measure`, or one of the method's, the recipe's or the
    data's options, such as `observer`, `epochs` or `mean`.

    Args:
        program: Name of the config, such as `compress`.
        nodes: Overrides that say which network and data there are.
        options: Keywords and their values. The value of a group is the name of a choice, or a dict of its keys, and a
            dict for `recipe` holds keys of the method's own recipe, if it has one.
        overrides: Overrides as on the command line.
        sweeps: Whether a list holds several values to go through. A list for an option of the data is always one value.

    Returns:
        Overrides by their keys, and those that were given as on the command line.

    Raises:
        UserError: A keyword is unknown, or is an option of several of them; or a value cannot be written down.
    """
    if isinstance(overrides, str) or not all(isinstance(each, str) for each in overrides):
        raise UserError(f"overrides={overrides!r} must be a list of strings, such as ['data.mean=[0.5,0.5,0.5]'].")
    given = {RENAMED.get(name, name): value for name, value in options.items()}
    chosen = {name: value for name, value in given.items() if not isinstance(value, Mapping) and choices(name)}
    for name, value in chosen.items():
        if isinstance(value, list) and not sweeps:
            raise UserError(
                f"{name}={value!r} has several values, and this takes one. qexp.sweep goes through several."
            )
    configs = [
        composed(program, [f"{key}={value}" for key, value in {**nodes, **one}.items()]) for one in _each(chosen)
    ]
    words: Words = {}
    for name, value in given.items():
        place = name if name in chosen else _place(name, configs, isinstance(value, Mapping))
        several = sweeps and isinstance(value, list) and not place.startswith("data.")
        if isinstance(value, Mapping) and isinstance(OmegaConf.select(configs[0], place), DictConfig):
            words |= _flat(place, value)
        elif several:
            words[place] = ",".join(literal(each, name) for each in value)
        else:
            words[place] = literal(value, name)
    return words, list(overrides)


def listed(words: Words) -> list[str]:
    """The overrides as on the command line."""
    return [f"{key}={value}" for key, value in words.items()]


def of_a_method(key: str) -> bool:
    """Whether an override says how one network is compressed. The others are the same for all that are compared."""
    name = key.lstrip("+~").partition("=")[0]
    return name in OF_A_METHOD or name.startswith("method.")


def _each(chosen: Mapping[str, Any]) -> Iterable[dict[str, str]]:
    """The choices of groups of which each is made once, whichever keys the others have."""
    listed = {name: [*value] if isinstance(value, list) else [value] for name, value in chosen.items()}
    most = max(map(len, listed.values()), default=1)
    for place in range(most):
        yield {name: literal(values[min(place, len(values) - 1)], name) for name, values in listed.items() if values}


def _place(name: str, configs: Sequence[DictConfig], node: bool) -> str:
    """The key of the config that a keyword means.

    Args:
        name: The keyword.
        configs: Configs with the choices of which it may be an option.
        node: Whether its value is a node of keys. `recipe` is then that of the method, if the method has one.

    Raises:
        UserError: There is none, or there are several.
    """
    top = {str(key) for config in configs for key in config} - {"hydra"}
    if name in top and not (node and any(name in config.get("method", ()) for config in configs)):
        return name
    # Where there is a method, the recipe is that of a missing baseline.
    nodes = ["method", "data"] if "method" in top else ["recipe", "data"]
    keys = {
        node: {str(key) for config in configs for key in config[node] if not str(key).startswith("_")} for node in nodes
    }
    found = [node for node in nodes if name in keys[node]]
    if not found:
        known = sorted(top - {"model", "data"} | {key for inside in keys.values() for key in inside})
        raise UserError(f"There is no option {name!r}: {nearest(name, known)}")
    if len(found) > 1:
        either = " or ".join(f"overrides=['{node}.{name}=...']" for node in found)
        raise UserError(f"{name} is an option of {' and of '.join(found)}. Say which: {either}.")
    return f"{found[0]}.{name}"


def _flat(place: str, values: Mapping[str, Any]) -> Words:
    found: Words = {}
    for name, value in values.items():
        key = f"{place}.{name}"
        found |= _flat(key, value) if isinstance(value, Mapping) else {key: literal(value, name)}
    return found


def literal(value: Any, name: str) -> str:
    """Write a value as Hydra's grammar reads it.

    Args:
        value: None, a bool, a number, a string, a path, or a list, tuple or dict of such.
        name: What the error calls it.

    Raises:
        UserError: It is something else.
    """
    if hasattr(value, "item") and not isinstance(value, (str, bytes)) and getattr(value, "ndim", None) == 0:
        value = value.item()  # a number of NumPy or torch
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (str, Path)):
        return _string(str(value))
    if isinstance(value, (list, tuple)):
        return f"[{','.join(literal(each, name) for each in value)}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{_key(str(key))}:{literal(each, name)}' for key, each in value.items())}}}"
    raise UserError(
        f"{name} is a {type(value).__name__}; give None, a bool, a number, a string, a path, or a list or dict of "
        "these."
    )


def _key(text: str) -> str:
    """A key of a dict, which Hydra's grammar knows without quotes only."""
    if re.search("[\"'#]", text) or not text:
        raise UserError(f"The key {text!r} cannot be written down. Put * in the place of quotes, if names take it.")
    return re.sub(r"([()\[\]{}:=,\s\\])", r"\\\1", text)


def _string(text: str) -> str:
    if WORD.fullmatch(text) and text.lower() not in OTHERWISE_READ:
        return text
    escaped = re.sub(r"(\\*)'", lambda found: found[1] * 2 + r"\'", text)  # backslashes count in front of a quote
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{chr(92) * trailing}'"
