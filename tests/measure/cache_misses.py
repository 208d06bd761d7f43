"""A measure as somebody outside would write it: one file, whose metrics the table of qexp.metrics does not know."""

from __future__ import annotations

from qexp.measure.base import Context, Measure
from qexp.metrics import Metric
from qexp.records import Measurement


class CacheMisses(Measure):
    """per_image: misses that it counts, whatever runs."""

    metrics = (
        Metric(
            "cache_misses", "misses", title="misses", axis="cache misses of one call", better="lower", per_machine=True
        ),
        Metric("surprise", "fraction", title="surprise", form="share", on_test=True, has_validation=True),
    )

    def __init__(self, per_image: int):
        self.per_image = per_image

    def measure(self, context: Context) -> list[Measurement]:
        misses, surprise = self.metrics
        return [misses.of(self.per_image * context.candidate.batch), surprise.of(0.25)]
