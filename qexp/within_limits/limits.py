"""What a search within limits is asked for: limits, what to minimise, and how a record is judged by them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qexp.metrics import METRICS, VALIDATION, Metric
from qexp.types import UserError, nearest

DROP = "drop"
# By the names of limits: the metrics that they bound.
BOUNDED: dict[str, Metric] = {
    DROP: METRICS[f"{VALIDATION}top1_drop"],
    **{name: METRICS[name] for name in ("latency_ms", "size_mb", "memory_mb", "macs_m")},
}
ERROR = METRICS[f"{VALIDATION}top1"]  # stands for the drop where metrics are weighed against each other
UNITS = {DROP: "percentage points", "latency_ms": "ms", "size_mb": "MB", "memory_mb": "MB", "macs_m": "millions"}
TIMED = ("latency_ms", "memory_mb")  # which need an engine with kernels
BITS = (32, 16, *range(8, 1, -1))
# By the methods that the search knows: the bits that they give, and whether they train.
METHODS: dict[str, tuple[tuple[int, ...], bool]] = {
    "none": ((32,), False),
    "half": ((16,), False),
    "static": ((8, 7, 6, 5, 4, 3, 2), False),
    "reconstruct": ((8, 7, 6, 5, 4, 3, 2), False),
    "mixed": ((7, 6, 5, 4, 3, 2), False),
    "qat": ((8,), True),
    "prune_channels": ((32, 8), True),
}
SURELY, SEEN, MISSED, UNKNOWN = "holds surely", "holds on what was seen", "missed", "unknown"


@dataclass(frozen=True)
class Judged:
    """How a run stands to one limit.

    Attributes:
        name: Name of the limit.
        limit: The limit, in its unit.
        value: What was reached, or None if that is unknown.
        low: Lower bound of the 95 % interval of that. It is the value if there is no interval.
        high: Upper bound.
    """

    name: str
    limit: float
    value: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def how(self) -> str:
        """SURELY, SEEN, MISSED or UNKNOWN."""
        if self.value is None or self.high is None:
            return UNKNOWN
        if self.value > self.limit:
            return MISSED
        return SURELY if self.high <= self.limit else SEEN

    @property
    def excess(self) -> float:
        """By what share of the limit it is missed, 0 if it holds. Points of accuracy count in whole points at least."""
        if self.value is None:
            return math.inf
        scale = max(self.limit, 1.0) if self.name == DROP else self.limit
        return max(0.0, (self.value - self.limit) / scale)

    def __str__(self) -> str:
        unit = {DROP: " points"}.get(self.name, f" {UNITS[self.name]}")
        if self.value is None:
            return f"{self.name} is unknown (limit {self.limit:g})"
        interval = f" ({self.low:.3g} to {self.high:.3g})" if self.low != self.high else ""
        return f"{self.name} {self.value:.3g}{interval}{unit}, limit {self.limit:g}: {self.how}"


@dataclass(frozen=True)
class Limits:
    """The limits of a search, as conf/experiment/within.yaml explains them.

    Raises:
        UserError: A limit is out of range, something is unknown, or limits contradict each other or `minimise`.
    """

    drop: float | None
    latency_ms: float | None
    size_mb: float | None
    memory_mb: float | None
    macs_m: float | None
    bits: Sequence[int]
    engines: Sequence[str] | None
    methods: Sequence[str]
    training: bool
    minutes: float
    sure: bool
    minimise: Sequence[str]

    def __post_init__(self) -> None:
        for name in (*BOUNDED, "minutes"):
            self._check_number(name)
        self._check_names("minimise", self.minimise, BOUNDED)
        self._check_names("limits.methods", self.methods, METHODS)
        for bits in self.bits:
            if bits not in BITS:
                raise UserError(f"limits.bits has {bits!r}; give numbers of bits among {', '.join(map(str, BITS))}.")
        self._check_sense()

    def _check_number(self, name: str) -> None:
        value = getattr(self, name)
        if value is None and name != "minutes":
            return
        unit = UNITS.get(name, "minutes")
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value < 0 or (value == 0 and name != DROP):
            least = "0 or more" if name == DROP else "above 0"
            null = ", or null for no limit" if name != "minutes" else ""
            raise UserError(f"limits.{name}={value} is out of range; give {unit} {least}{null}.")

    def _check_names(self, option: str, given: Any, known: Iterable[str]) -> None:
        if isinstance(given, str) or not isinstance(given, Sequence) or not given:
            raise UserError(f"{option}={given} is no list of names. Known: {', '.join(known)}")
        for name in given:
            if name not in known:
                raise UserError(f"{option}={name} is unknown. {nearest(str(name), known)}")

    def _check_sense(self) -> None:
        """Refuse limits that leave nothing to try, and a minimum that only a useless network would have."""
        minimised = ",".join(self.minimise)
        if self.drop is None and DROP not in self.minimise:
            raise UserError(
                f"minimise={minimised} without limits.drop would find a network that answers at random: give "
                "limits.drop=0.5, in percentage points of top-1, or minimise drop as well."
            )
        if not self.usable:
            raise UserError(
                f"No method of limits.methods={list(self.methods)} gives limits.bits={list(self.bits)}"
                f"{'' if self.training else ' without training (limits.training=false)'}. "
                f"Known: {'; '.join(f'{name} {bits}' for name, (bits, _) in METHODS.items())}."
            )
        timed = [name for name in TIMED if self.wants(name)]
        if timed and max(self.bits) < 8:
            raise UserError(
                f"{timed[0]} is to be limited or minimised, but limits.bits={list(self.bits)} allows only numbers of "
                "bits that no engine has kernels for. Allow 8, 16 or 32, or ask for size_mb instead."
            )
        if "macs_m" in self.minimise and not self.allows("prune_channels"):
            raise UserError(
                "minimise=macs_m needs a method that leaves operations out: allow prune_channels in limits.methods, "
                "with limits.training=true."
            )

    @property
    def usable(self) -> list[str]:
        """The methods that may be tried."""
        return [name for name in self.methods if self.allows(name)]

    def allows(self, method: str, bits: int | None = None) -> bool:
        """Whether a method may be tried, with this number of bits or with any that is allowed."""
        gives, trains = METHODS[method]
        allowed = {*self.bits} & {*gives} if bits is None else {*self.bits} & {*gives} & {bits}
        return method in self.methods and bool(allowed) and (self.training or not trains)

    def wants(self, name: str) -> bool:
        """Whether a metric is limited or minimised."""
        return getattr(self, name) is not None or name in self.minimise

    @property
    def needs_kernels(self) -> bool:
        """Whether something is wanted that only an engine with kernels has."""
        return any(map(self.wants, TIMED))

    @cached_property
    def given(self) -> dict[str, float]:
        """The limits that were given, by name."""
        return {name: getattr(self, name) for name in BOUNDED if getattr(self, name) is not None}

    def judge(self, metrics: Mapping[str, float]) -> list[Judged]:
        """Judge the metrics of a record by each limit."""
        found = []
        for name, limit in self.given.items():
            metric = BOUNDED[name]
            values = [metrics.get(n) for n in (metric.name, *(metric.bounds or _bounds(name, metric)))]
            scaled = [None if value is None else metric.factor * value for value in values]
            value, low, high = (*scaled, *[scaled[0]] * (3 - len(scaled)))
            found.append(Judged(name, limit, value, value if low is None else low, value if high is None else high))
        return found

    def hold(self, judged: Sequence[Judged]) -> bool:
        """Whether all limits hold: surely with `sure`, otherwise on what was seen."""
        return all(each.how == SURELY or (each.how == SEEN and not self.sure) for each in judged)

    def values(self, metrics: Mapping[str, float]) -> list[float] | None:
        """What is minimised, in the order of `minimise`, or None if something of it is unknown."""
        names = [BOUNDED[name].name for name in self.minimise]
        if not {*names} <= metrics.keys():
            return None
        return [BOUNDED[name].factor * metrics[BOUNDED[name].name] for name in self.minimise]

    def score(self, metrics: Mapping[str, float]) -> float:
        """One number for all that is minimised, by which what is tried is put in order: the less, the better.

        It is the sum of the logarithms, so that halving one of them is worth as much as halving another. The share of
        wrong answers stands for the drop, which may be 0 or less. Infinite if something of it is unknown.
        """
        if self.values(metrics) is None or (DROP in self.minimise and ERROR.name not in metrics):
            return math.inf
        costs = [1 - metrics[ERROR.name] if name == DROP else metrics[BOUNDED[name].name] for name in self.minimise]
        return sum(math.log(max(cost, 1e-9)) for cost in costs)


def _bounds(name: str, metric: Metric) -> tuple[str, ...]:
    """The metrics that bound the interval of a drop, whose interval tables do not show."""
    return (f"{metric.name}_low", f"{metric.name}_high") if name == DROP else ()
