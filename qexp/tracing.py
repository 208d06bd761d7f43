"""How networks are traced into graphs, wherever torch does that for an export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_stack_traces() -> Iterator[None]:
    """Let torch trace without looking up the line of Python that each operator comes from.

    No artifact keeps these lines, and looking them up takes a fifth of the time of an export.
    """
    from torch.fx import config

    before = config.do_not_emit_stack_traces
    config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        config.do_not_emit_stack_traces = before
