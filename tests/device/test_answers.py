"""What another machine answers is checked before anything is made of it."""

from __future__ import annotations

from typing import Any

import pytest

from qexp.device.answers import Implausible, check_answer, check_facts, printable

FACTS: dict[str, Any] = {
    "host": "board", "cpu": "Cortex-A72", "cores": 4, "cpu_flags": ["asimddp"], "affinity": [0, 1, 2, 3],
    "governor": "ondemand", "load": 0.1, "memory_gb": 3.9, "system": "Linux", "python": "3.11.2",
    "versions": {"numpy": "2.4.6"}, "physical_cores": 4, "temperature_c": 48.3, "boot": "b", "emulated": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "answer", "asked", "wrong"),
    [
        ("ready", {"process": "1; rm"}, {}, "process is no whole number"),
        ("ready", {"process": 1}, {}, "process is no whole number"),
        ("start", {"load_ms": float("nan"), "first_call_ms": 1, "memory_mb": None}, {}, "load_ms is no number"),
        ("start", {"load_ms": 1, "memory_mb": 3.0}, {}, "first_call_ms is no number"),
        ("start", {"load_ms": 1, "first_call_ms": 2, "memory_mb": -3.0}, {}, "memory_mb is no number"),
        ("start", {"load_ms": True, "first_call_ms": 2, "memory_mb": 3}, {}, "load_ms is no number"),
        ("window", {"samples": [1.0] * 4}, {"calls": 5}, "has 4 times, and 5 calls"),
        ("window", {"samples": [1.0, 0]}, {"calls": 1}, "a time in ms is no number"),
        ("window", {"samples": [1.0, float("inf")]}, {"calls": 1}, "a time in ms is no number"),
        ("window", {"samples": "1 2 3"}, {"calls": 1}, "samples is no list"),
        ("window", {}, {"calls": 1}, "samples is no list"),
        ("predict", {"seconds": None}, {}, "seconds is no number"),
        ("operators", {"profile": []}, {}, "profile is no table"),
        ("operators", {"profile": {"text": "", "rows": [7], "allocated_mib": None}}, {}, "a row of the profile"),
        ("operators", {"profile": {"text": "", "rows": [{"name": 3}]}}, {}, "name of an operator is no text"),
        ("operators", {"profile": {"text": "", "rows": [{"name": "a"}] * 10_001}}, {}, "rows is no list"),
    ],
)  # fmt: skip
def test_answers_that_cannot_be_are_refused(
    command: str, answer: dict[str, Any], asked: dict[str, Any], wrong: str
) -> None:
    with pytest.raises(Implausible, match=wrong):
        check_answer(command, answer, asked)


def test_only_what_was_asked_for_is_left_of_an_answer() -> None:
    answer = {"load_ms": 2, "first_call_ms": 3.5, "memory_mb": None, "more": "x" * 10}
    assert check_answer("start", answer, {}) == {
        "load_ms": 2.0, "first_call_ms": 3.5, "memory_mb": None, "device_memory_mb": None,
    }  # fmt: skip
    row = {"name": "Conv\x1b[2J", "calls": 2, "self_cpu_time_us": 7.5, "computes": "integer", "evil": "<script>"}
    found = check_answer("operators", {"profile": {"text": "a\x07\nb", "rows": [row]}}, {})["profile"]
    assert found["text"] == "a \nb"
    assert found["rows"] == [{"name": "Conv [2J", "calls": 2.0, "self_cpu_time_us": 7.5, "computes": "integer"}]


def test_facts_of_a_machine() -> None:
    assert check_facts({**FACTS, "password": "x"}) == FACTS
    sparse = {name: FACTS[name] for name in ("host", "cpu", "cpu_flags", "versions", "physical_cores")}
    assert check_facts(sparse)["governor"] is None and check_facts(sparse)["emulated"] is False


@pytest.mark.parametrize(
    "wrong",
    [
        {"host": None}, {"host": "x" * 501}, {"cpu": 7}, {"versions": ["numpy"]}, {"versions": {"numpy": 2}},
        {"physical_cores": 0}, {"physical_cores": 2.5}, {"temperature_c": float("nan")}, {"affinity": [-1]},
        {"cpu_flags": ["a"] * 101}, {"memory_gb": "much"}, {"load": -1},
    ],
)  # fmt: skip
def test_facts_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(Implausible):
        check_facts({**FACTS, **wrong})


def test_a_text_cannot_steer_a_terminal() -> None:
    assert printable("a\x1b]0;title\x07\r\nb·ü") == "a ]0;title   b·ü"
