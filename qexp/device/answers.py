"""Checks what a device answers: its values come from another machine, and nothing of them is believed unseen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from qexp.launch import ChildFailed

LONGEST = 500  # characters of a text
MOST_ROWS = 10_000  # of a profile, and of other lists of unknown length
COMPUTES = ("integer", "floating point", "conversion", "other")


class Implausible(ChildFailed):
    """An answer is not what was asked for. The message says which field of it."""

    def __init__(self, wrong: str):
        super().__init__(f"answered with what cannot be: {wrong}")


def check_answer(command: str, answer: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """Check the answer of a measuring child.

    Args:
        command: What it was asked.
        answer: What it answered.
        asked: The arguments of the question.

    Returns:
        The fields that the answer has to have, and no others.

    Raises:
        Implausible: One of them is missing, or has a value that it cannot have.
    """
    return CHECKS[command](answer, asked) if command in CHECKS else answer


def text(value: Any, where: str) -> str:
    """A short text in which nothing but what can be seen is left."""
    if not isinstance(value, str) or len(value) > LONGEST:
        raise Implausible(f"{where} is no text of at most {LONGEST} characters: {value!r:.60}")
    return printable(value)


def printable(value: str) -> str:
    """The text without what could steer a terminal."""
    return "".join(character if character.isprintable() else " " for character in value)


def number(value: Any, where: str, least: float = 0.0, most: float = 1e12) -> float:
    """A finite number within bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise Implausible(f"{where} is no number from {least:g} to {most:g}: {value!r:.60}")
    return float(value)


def number_or_none(value: Any, where: str, most: float = 1e12) -> float | None:
    return None if value is None else number(value, where, most=most)


def whole(value: Any, where: str, least: int = 0, most: int = 2**40) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise Implausible(f"{where} is no whole number from {least} to {most}: {value!r:.60}")
    return value


def listed(value: Any, where: str, most: int = MOST_ROWS) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise Implausible(f"{where} is no list of at most {most} entries: {value!r:.60}")
    return value


def _ready(answer: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    return {"process": whole(answer.get("process"), "process", 2, 2**32)}


def _start(answer: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    memory = ("memory_mb", "device_memory_mb")
    return {
        **{name: number(answer.get(name), name, most=1e8) for name in ("load_ms", "first_call_ms")},
        **{name: number_or_none(answer.get(name), name, most=1e8) for name in memory},
    }


def _window(answer: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    samples = listed(answer.get("samples"), "samples", 10_000_000)
    if len(samples) < asked["calls"]:
        raise Implausible(f"samples has {len(samples)} times, and {asked['calls']} calls were asked for")
    return {"samples": [number(sample, "a time in ms", math.ulp(1.0), 1e8) for sample in samples]}


def _predict(answer: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    return {"seconds": number(answer.get("seconds"), "seconds", most=1e8)}


def _operators(answer: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    profile = answer.get("profile")
    if profile is None:
        return {"profile": None}
    if not isinstance(profile, dict) or not isinstance(profile.get("text"), str):
        raise Implausible(f"profile is no table: {profile!r:.60}")
    return {
        "profile": {
            "text": "\n".join(printable(line) for line in profile["text"][:1_000_000].split("\n")),
            "rows": [_operator(row) for row in listed(profile.get("rows"), "rows")],
            "allocated_mib": number_or_none(profile.get("allocated_mib"), "allocated_mib"),
        }
    }


def _operator(row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise Implausible(f"a row of the profile is no object: {row!r:.60}")
    kind = {"computes": row["computes"]} if row.get("computes") in COMPUTES else {}
    numbers = {
        name: number(value, f"{name} of an operator", -1e15, 1e15)
        for name, value in row.items()
        if name not in ("name", "computes") and isinstance(value, int | float)
    }
    return {"name": text(row.get("name"), "name of an operator"), **numbers, **kind}


CHECKS: dict[str, Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]] = {
    "ready": _ready, "start": _start, "window": _window, "predict": _predict, "operators": _operators,
}  # fmt: skip


def check_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """Check what a keeper says of its machine.

    Returns:
        The facts that records have.

    Raises:
        Implausible: One of them is missing, or has a value that it cannot have.
    """

    def texts(name: str) -> str | None:
        return None if facts.get(name) is None else text(facts[name], name)

    stated = facts.get("versions")
    if not isinstance(stated, dict) or len(stated) > 100:
        raise Implausible(f"versions is no table of versions: {stated!r:.60}")
    cores = facts.get("cores")
    return {
        "host": text(facts.get("host"), "host"), "cpu": text(facts.get("cpu"), "cpu"),
        "cores": None if cores is None else whole(cores, "cores", 1, 100_000),
        "cpu_flags": [text(flag, "a flag") for flag in listed(facts.get("cpu_flags"), "cpu_flags", 100)],
        "affinity": facts.get("affinity") and [
            whole(core, "a core") for core in listed(facts["affinity"], "affinity", 100_000)
        ],
        "governor": texts("governor"), "load": number_or_none(facts.get("load"), "load", 1e6),
        "memory_gb": number_or_none(facts.get("memory_gb"), "memory_gb", 1e6),
        "system": texts("system"), "python": texts("python"),
        "versions": {text(name, "a package"): text(version, name) for name, version in stated.items()},
        "physical_cores": whole(facts.get("physical_cores"), "physical_cores", 1, 100_000),
        "temperature_c": None if facts.get("temperature_c") is None
        else number(facts["temperature_c"], "temperature_c", -273.15, 1000),
        "boot": texts("boot"), "emulated": facts.get("emulated") is True,
    }  # fmt: skip
