"""What a search within limits has seen so far: its trials, what came of them, and what that means for the limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from qexp.metrics import METRICS
from qexp.records import Record
from qexp.report.terms import equal_terms
from qexp.within_limits.limits import BOUNDED, DROP, MISSED, Judged, Limits


@dataclass(frozen=True)
class Trial:
    """One job of a search.

    Attributes:
        step: The step of the search that it belongs to.
        name: What people call it.
        words: The overrides that it adds to those of the command.
        engine: The engine that it asks for.
        epochs: Epochs that it trains for.
    """

    step: str
    name: str
    words: tuple[str, ...]
    engine: str
    epochs: int = 0


@dataclass(frozen=True)
class Result:
    """A trial that ended.

    Attributes:
        trial: The trial.
        record: Its record, or None if it is the same run as another trial.
        at: Seconds that the search had taken when it ended.
    """

    trial: Trial
    record: Record | None
    at: float = 0.0

    @property
    def finished(self) -> bool:
        return self.record is not None and self.record.status == "finished"

    @property
    def seconds(self) -> float:
        return self.record.seconds if self.record else 0.0


@dataclass
class Seen:
    """The state of a search.

    Attributes:
        limits: What is asked for.
        engines: Engines that may be tried, by name.
        results: The trials that ended, in their order.
        dropped: Why other trials were left out or given up, by their names, in their order.
        left: Seconds that are left.
    """

    limits: Limits
    engines: Sequence[str]
    results: list[Result] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    left: float = math.inf

    @property
    def finished(self) -> list[Result]:
        return [result for result in self.results if result.finished]

    def judged(self, result: Result) -> list[Judged]:
        assert result.record
        return self.limits.judge(result.record.metrics)

    def holds(self, result: Result) -> bool:
        return result.finished and self.limits.hold(self.judged(result))

    @property
    def holding(self) -> list[Result]:
        """The results that hold all limits and have all that is minimised, the best first."""
        scores = self.scores()
        held = [r for r in self.finished if self.holds(r) and math.isfinite(scores[r.trial.name])]
        return sorted(held, key=lambda r: (scores[r.trial.name], self.lost(r)))

    @property
    def front(self) -> list[Result]:
        """Those of `holding` that no other beats in one of the things that are minimised, and equals in the others."""
        values = {name: [*costs] for name, costs in self._values().items()}

        def beaten(one: Result) -> bool:
            own = values[one.trial.name]
            others = (values[other.trial.name] for other in self.holding)
            return any(all(a <= b for a, b in zip(v, own, strict=True)) and v != own for v in others)

        return [result for result in self.holding if not beaten(result)]

    @property
    def nearest(self) -> list[Result]:
        """The finished results, those first that miss their limits by the smallest share, all shares together."""
        return sorted(self.finished, key=lambda r: (sum(each.excess for each in self.judged(r)), self.lost(r)))

    def scores(self) -> dict[str, float]:
        """The score of every finished result, with times on equal terms, by the name of its trial."""
        return {name: self.limits.score(metrics) for name, metrics in self._metrics().items()}

    def _metrics(self) -> dict[str, dict[str, float]]:
        found = self.finished
        terms = equal_terms([result.record for result in found if result.record])
        return {result.trial.name: metrics for result, metrics in zip(found, terms, strict=True)}

    def _values(self) -> dict[str, list[float]]:
        return {name: self.limits.values(metrics) or [] for name, metrics in self._metrics().items()}

    def cannot_beat(self, result: Result) -> str:
        """Why a result is no better than the best that holds, however accurate it became, or empty if it may be."""
        best = next(iter(self.holding), None)
        if best is None or DROP in self.limits.minimise:
            return ""
        scores = self.scores()
        if scores[result.trial.name] < scores[best.trial.name]:
            return ""
        return f"{', '.join(self.limits.minimise)} is no less than that of {best.trial.name}, which holds"

    def misses_cost(self, result: Result) -> str:
        """The limit other than the drop that a result misses, or empty if there is none."""
        costs = [each for each in self.judged(result) if each.name != DROP and each.how == MISSED]
        return str(costs[0]) if costs else ""

    def misses_drop(self, result: Result) -> bool:
        """Whether accuracy is what keeps a result from holding, and how it is judged leaves room for more."""
        drops = [each for each in self.judged(result) if each.name == DROP]
        return bool(drops) and not self.limits.hold(drops)

    def lost(self, result: Result) -> float:
        """Percentage points of top-1 that a result loses on validation images, infinite if that is unknown."""
        assert result.record
        metric = BOUNDED[DROP]
        return metric.factor * result.record.metrics.get(metric.name, math.inf)

    def result_of(self, trial: Trial) -> Result | None:
        """What came of a trial, or None if it was not run."""
        return next((result for result in self.results if result.trial == trial), None)

    def of_step(self, step: str) -> list[Result]:
        return [result for result in self.results if result.trial.step == step]

    def leading(self, steps: Sequence[str], count: int) -> list[str]:
        """The engines with the best scores among finished trials of the first of these steps that has any.

        Where what is minimised does not tell engines apart, the faster one comes first.
        """
        scores, latency = self.scores(), METRICS["latency_ms"].name
        for step in steps:
            found = [result for result in self.of_step(step) if result.finished and result.record]
            if found:
                metrics = self._metrics()
                order = sorted(
                    found,
                    key=lambda r: (scores[r.trial.name], metrics[r.trial.name].get(latency, math.inf)),
                )
                return [*dict.fromkeys(result.trial.engine for result in order)][:count]
        return []
