"""In a notebook, what takes long is shown below its cell, without threads, and vanishes at the end."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from qexp import progress as shown


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the line below a cell has shown, one after the other."""
    written: list[str] = []

    def display(text: str, display_id: bool) -> SimpleNamespace:
        assert display_id
        written.append(text)
        return SimpleNamespace(update=written.append)

    page = SimpleNamespace(HTML=str, display=display)
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell, display=page))
    monkeypatch.setattr(shown, "REFRESH_S", 0)
    return written


def test_a_bar_counts_and_vanishes(line: list[str]) -> None:
    assert [*shown.progress("abc", "Looking at <x>", 3)] == ["a", "b", "c"]
    assert line[0] == "<small>Looking at &lt;x&gt;</small>" and line[-1] == ""
    assert [f'<progress value="{done}" max="3">' in text for done, text in enumerate(line[1:-1])] == [True] * 3
    assert "s left" in line[2]


def test_what_is_done_is_named_until_it_ends_even_with_an_error(line: list[str]) -> None:
    with pytest.raises(ZeroDivisionError), shown.doing("Making static"):
        assert line == ["<small>Making static ...</small>"]
        _ = 1 / 0
    assert line[-1] == ""


def test_elsewhere_nothing_is_displayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert not shown.in_notebook() and [*shown.progress("ab", "x", 2)] == ["a", "b"]
