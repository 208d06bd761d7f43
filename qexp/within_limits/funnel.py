"""The steps of a search within limits, the cheap ones first. Each decides by what those before it have shown.

Nothing here runs anything: the steps are pure functions of what was seen, so that a search that is started again
proposes the same.
"""

from __future__ import annotations

from collections.abc import Iterator

from qexp.within_limits.seen import Seen, Trial
from qexp.within_limits.training import trained
from qexp.within_limits.untrained import fewer_bits, floating, integers, recovery


def funnel(seen: Seen) -> Iterator[list[Trial]]:
    """Yield the trials of each step. What came of them has to be in `seen` before the next step is asked for.

    Args:
        seen: The state of the search. Reasons why trials are left out are added to it.
    """
    yield floating(seen)
    yield integers(seen)
    yield recovery(seen)
    yield from fewer_bits(seen)
    yield from trained(seen)
