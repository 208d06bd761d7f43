"""Shows at a terminal what takes long, and how long it still will. Where nobody sits, nothing is written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")


def progress(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Pass on `items`, and show a bar with the time left, which vanishes at the end."""
    with _bar() as bar:
        yield from bar.track(items, total, description=what)


@contextmanager
def counted(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with the time left, which vanishes at the end.

    Yields:
        A function that takes how many are done, and how many there are.
    """
    with _bar() as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def doing(what: str, still: bool = False) -> Iterator[None]:
    """Show what is being done and for how long, until it ends. Bars that are shown meanwhile stand below it.

    Args:
        what: What is being done.
        still: Whether to write it once, without the time, because anything else would disturb what is timed.
    """
    text, elapsed = TextColumn("  {task.description} ..."), TimeElapsedColumn()
    columns = (text,) if still else (SpinnerColumn(), text, elapsed)
    with Progress(*columns, transient=True, auto_refresh=not still, disable=not sys.stdout.isatty()) as shown:
        shown.add_task(what, total=None)
        yield


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, transient=True, disable=not sys.stdout.isatty())
