"""Shows at a terminal or in a notebook what takes long, and how long it still will.

Where nobody sits, nothing is written.
"""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

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
REFRESH_S = 0.2  # seconds between two pictures of a bar in a notebook


def progress(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Pass on `items`, and show a bar with the time left, which vanishes at the end."""
    with counted(what) as told:
        for done, item in enumerate(items):
            told(done, total)
            yield item


@contextmanager
def counted(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with the time left, which vanishes at the end.

    Yields:
        A function that takes how many are done, and how many there are.
    """
    if in_notebook():
        with _cell(what) as shown:
            yield shown
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def doing(what: str, still: bool = False) -> Iterator[None]:
    """Show what is being done and for how long, until it ends. Bars that are shown meanwhile stand below it.

    Args:
        what: What is being done.
        still: Whether to write it once, without the time, because anything else would disturb what is timed.
    """
    if in_notebook():  # without the time: a thread that writes it would go on beside what is done
        with _cell(f"{what} ..."):
            yield
        return
    text, elapsed = TextColumn("  {task.description} ..."), TimeElapsedColumn()
    columns = (text,) if still else (SpinnerColumn(), text, elapsed)
    with Progress(*columns, transient=True, auto_refresh=not still, disable=not sys.stdout.isatty()) as shown:
        shown.add_task(what, total=None)
        yield


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = sys.modules.get("IPython")
    return shell is not None and hasattr(shell.get_ipython(), "kernel")


@contextmanager
def _cell(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a line below a notebook's cell, with a bar as soon as something is counted. It vanishes at the end."""
    display: Any = sys.modules["IPython"].display
    text, began, written = html.escape(what), time.monotonic(), 0.0
    line = display.display(display.HTML(f"<small>{text}</small>"), display_id=True)

    def told(done: int, total: int) -> None:
        nonlocal written
        if time.monotonic() - written < REFRESH_S:
            return
        written = time.monotonic()
        left = f", {(written - began) / done * (total - done):.0f} s left" if done else ""
        bar = f'<progress value="{done}" max="{total}"></progress>'
        line.update(display.HTML(f"<small>{text} {bar} {done}/{total}{left}</small>"))

    try:
        yield told
    finally:
        line.update(display.HTML(""))
