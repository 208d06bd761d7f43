"""What is known of every metric of a record, in one table that reports, MLflow, searches and imports all read.

The module imports nothing heavy. A metric that only one measure takes is declared in that measure's own file. Its
records then carry its description, so that everything that reads them treats it like a metric of the table.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from qexp.records import Measurement, Record

VALIDATION = "val_"  # the start of the names of metrics that are taken on the validation images
LOWER, HIGHER = "lower", "higher"
UNITS_SHOWN = {"fraction": "%", "M": "millions", "x": ""}  # units that people see under another name than records have


def percent(value: float) -> str:
    return f"{100 * value:.2f}"


def significant(value: float) -> str:
    """Format with three significant digits and without an exponent, keeping all digits before the point."""
    if not math.isfinite(value):  # the loss of a network that diverged
        return str(value)
    exponent = int(f"{value:.2e}".partition("e")[2])
    return f"{value:.{max(0, 2 - exponent)}f}"


def share(value: float) -> str:
    return f"{100 * value:.0f} %"


def whole(value: float) -> str:
    return f"{value:.0f}"


def times(value: float) -> str:
    return f"{value:.2f}x"


FORMS: dict[str, Callable[[float], str]] = {form.__name__: form for form in (percent, significant, share, whole, times)}


@dataclass(frozen=True)
class Metric:
    """What is known of one metric.

    Attributes:
        name: Name in a record.
        unit: Unit of the value in a record, such as `MB`, `ms`, `fraction` or `x`.
        title: Short title for the head of a column. Tables leave out a metric without one.
        axis: Longer title for the axis of a plot, without the unit.
        form: How values are written, as a key of `FORMS`.
        better: `lower` or `higher`, or empty if neither is better.
        low: Name of the metric that bounds the 95 % interval below, or empty if there is no interval.
        high: Name of the metric that bounds the 95 % interval above, or empty if there is no interval.
        on_test: Whether it is taken on the test images, by which nothing may be chosen.
        has_validation: Whether it is taken on the validation images too, under the name `val_NAME`.
        per_machine: Whether it depends on the machine, so that only equal calls on the same machine are compared.
        portable: Whether it is the same on another machine that runs the same file.

    Raises:
        ValueError: The form or the direction does not exist, or one bound is given without the other.
    """

    name: str
    unit: str
    title: str = ""
    axis: str = ""
    form: str = "significant"
    better: str = ""
    low: str = ""
    high: str = ""
    on_test: bool = False
    has_validation: bool = False
    per_machine: bool = False
    portable: bool = False

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"metric {self.name} has the form {self.form!r}, which is none of {', '.join(FORMS)}")
        if self.better not in ("", LOWER, HIGHER):
            raise ValueError(f"metric {self.name} is better {self.better!r}, which is neither {LOWER} nor {HIGHER}")
        if bool(self.low) != bool(self.high):
            raise ValueError(
                f"metric {self.name} has one bound, {self.low or self.high}; give low and high, or neither"
            )

    @property
    def bounds(self) -> tuple[str, ...]:
        """Names of the metrics that bound the 95 % interval, the lower bound first. Empty if there is no interval."""
        return (self.low, self.high) if self.low else ()

    @property
    def factor(self) -> int:
        """The factor by which a value in a record is multiplied to be shown: 100 for what is shown in percent."""
        return 100 if self.form in ("percent", "share") else 1

    @property
    def unit_shown(self) -> str:
        return UNITS_SHOWN.get(self.unit, self.unit)

    @property
    def axis_title(self) -> str:
        """The title for the axis of a plot, with the unit."""
        return ", ".join(filter(None, [self.axis or self.title or self.name, self.unit_shown]))

    def text(self, value: float) -> str:
        return FORMS[self.form](value)

    def interval(self, metrics: dict[str, float]) -> str:
        """Format the interval found in a record's metrics, to follow the value. Empty if the interval is not known."""
        if not self.bounds or not {*self.bounds} <= metrics.keys():
            return ""
        low, high = (self.text(metrics[bound]) for bound in self.bounds)
        return f" ({low} to {high})"

    @property
    def validation(self) -> Metric:
        """The same metric, taken on the validation images."""
        title = self.title.removeprefix("top-1 ")  # it goes without saying after "val"
        return replace(
            self, name=VALIDATION + self.name, title=title and f"val {title}",
            axis=self.axis and f"{self.axis} on the validation images", low=self.low and VALIDATION + self.low,
            high=self.high and VALIDATION + self.high, on_test=False, has_validation=False,
        )  # fmt: skip

    @property
    def with_validation(self) -> tuple[Metric, ...]:
        """This metric, and its counterpart on the validation images if it is taken on them too."""
        return (self, self.validation) if self.has_validation else (self,)

    def of(self, value: float, kind: str = "measured", samples: tuple[float, ...] = ()) -> Measurement:
        """Make a measurement of this metric. It carries the metric's description if the table does not know the metric.

        Args:
            value: Value in the metric's unit.
            kind: How the value came about: `measured`, `estimated` or `simulated`.
            samples: Single values behind it, if they are kept.

        Raises:
            ValueError: The table has a different metric of this name.
        """
        known = known_metric(self.name)
        if known not in (None, self):
            raise ValueError(f"{self.name} is a metric of qexp.metrics already: give this one another name")
        return Measurement(self.name, value, self.unit, kind, samples, {} if known else asdict(self))


_accuracy = partial(
    Metric, unit="fraction", form="percent", better=HIGHER, on_test=True, has_validation=True, portable=True
)
_size = partial(Metric, unit="MB", better=LOWER, portable=True)
_share = partial(Metric, unit="fraction", form="share", portable=True)
_count = partial(Metric, better=LOWER, portable=True, form="whole")
_cost = partial(Metric, better=LOWER, per_machine=True)
_time = partial(_cost, unit="ms")
_ratio = partial(Metric, unit="x", form="times", better=HIGHER)
_speedup = partial(_ratio, per_machine=True)
_parity = partial(Metric, unit="fraction", form="percent", on_test=True)

_TABLE = (
    _accuracy("top1", title="top-1 %", axis="top-1 accuracy", low="top1_low", high="top1_high"),
    _accuracy("top1_low"),
    _accuracy("top1_high"),
    _accuracy("top1_drop", title="drop", axis="top-1 accuracy lost", better=LOWER),
    _accuracy("top1_drop_low", better=LOWER),
    _accuracy("top1_drop_high", better=LOWER),
    _accuracy("top5", title="top-5 %", axis="top-5 accuracy"),
    _accuracy("agreement", title="agreement %", axis="same answer as fp32"),
    _accuracy("loss", unit="nats", title="loss", axis="loss", form="significant", better=LOWER),
    _accuracy("mcnemar_p", unit="probability", form="significant", better=""),
    _cost("test_seconds", unit="s", title="test set s", axis="accuracy pass", on_test=True),
    _parity("parity_agreement", axis="same answer as the reference", better=HIGHER),
    _parity("parity_max_error", axis="largest difference from the reference", better=LOWER),
    _size("size_mb", title="size MB", axis="size on disk"),
    _ratio("size_ratio", title="smaller", axis="times as small as fp32", portable=True),
    _size("packed_size_mb", title="packed MB", axis="size at exactly the bits of every tensor"),
    _size("zstd_size_mb", title="zstd MB", axis="size compressed by zstd"),
    _size("params_m", unit="M", title="params M", axis="parameters"),
    _size("macs_m", unit="M", title="MACs M", axis="multiply-accumulate operations"),
    _ratio("macs_ratio", title="fewer", axis="times as few operations as fp32", portable=True),
    _share("quantized_params_share", axis="quantised parameters"),
    _share("quantized_macs_share", title="low-bit", axis="quantised operations"),
    _count("float_operators", unit="operators", title="float ops", axis="operators in floating point"),
    _count("conversions", unit="tensors", axis="tensors converted between floating point and integers"),
    _share("sparsity", title="zeros", axis="zeros among the weights"),
    _time("latency_ms", title="ms", axis="latency of one call", low="latency_low_ms", high="latency_high_ms"),
    _time("latency_low_ms"),
    _time("latency_high_ms"),
    _time("latency_ms_per_image", title="ms per image", axis="latency per image"),
    _time("latency_mean_ms", title="mean ms", axis="mean latency of one call"),
    _time("latency_std_ms", axis="standard deviation of the latency"),
    _time("latency_p50_ms", title="p50 ms", axis="latency of one call, median"),
    _time("latency_p90_ms", title="p90 ms", axis="latency of one call, slowest tenth"),
    _time("latency_p99_ms", title="p99 ms", axis="latency of one call, slowest percent"),
    _cost("latency_spread", unit="fraction", form="percent", axis="interquartile range over the median of the latency"),
    _cost("throughput_ips", unit="images/s", title="images/s", axis="throughput", better=HIGHER),
    _speedup("speedup", title="faster", axis="times as fast as fp32 on eager PyTorch",
             low="speedup_low", high="speedup_high"),
    _speedup("speedup_low"),
    _speedup("speedup_high"),
    _speedup("speedup_vs_best_fp32", title="vs fp32", axis="times as fast as the best fp32 engine",
             low="speedup_vs_best_fp32_low", high="speedup_vs_best_fp32_high"),
    _speedup("speedup_vs_best_fp32_low"),
    _speedup("speedup_vs_best_fp32_high"),
    _speedup("heat_ratio", title="heat", better=LOWER, axis="times as long as the fastest, timed in turns with it",
             low="heat_ratio_low", high="heat_ratio_high"),
    _speedup("heat_ratio_low", better=LOWER),
    _speedup("heat_ratio_high", better=LOWER),
    _time("load_ms", title="load ms", axis="time to load"),
    _time("first_call_ms", title="first ms", axis="first call"),
    _cost("core_round_trip_ns", unit="ns", axis="round trip of a byte between two cores", better=""),
    _cost("memory_mb", unit="MB", title="memory MB", axis="memory"),
    _cost("device_memory_mb", unit="MB", title="device MB", axis="memory of the accelerator"),
    _cost("allocated_mib", unit="MiB", title="allocated MiB", axis="memory that operators allocated"),
    _share("float_time_share", title="float time", axis="time of operators in floating point"),
    _share("conversion_time_share", title="conversion time", axis="time of conversions between number formats"),
    _cost("energy_mj_per_image", unit="mJ", title="mJ per image", axis="energy per image"),
)  # fmt: skip
METRICS: dict[str, Metric] = {each.name: each for metric in _TABLE for each in metric.with_validation}


def candidate_metric(engine: str) -> Metric:
    """The time of one call on an engine in the trial in which `engine=auto` chooses among its candidates."""
    return _time(f"candidate_{engine}_ms")


def known_metric(name: str) -> Metric | None:
    """The metric of that name, from the table or by the rule for candidates. None if neither knows the name."""
    candidate = re.fullmatch(r"candidate_(.+)_ms", name)
    return candidate_metric(candidate[1]) if candidate else METRICS.get(name)


def metrics_of(records: Iterable[Record]) -> dict[str, Metric]:
    """Describe all metrics of these records, by name.

    Metrics of the table come first, in its order. The others follow in the order of the records, and the first
    description of each counts. A metric of an earlier version of qexp that nothing describes has only its unit.

    Raises:
        ValueError, TypeError: A measurement carries a wrong description of its metric (see `described`).
    """
    found: dict[str, Metric] = {}
    for record in records:
        for measured in record.measurements:
            if measured.name not in found:
                found[measured.name] = known_metric(measured.name) or described(measured)
    return {name: found[name] for name in METRICS if name in found} | found


def described(measured: Measurement) -> Metric:
    """Read the description of its metric that a measurement carries.

    Raises:
        ValueError, TypeError: It is not a description of a metric, or it describes another metric.
    """
    about: dict[str, Any] = {"name": measured.name, "unit": measured.unit} | measured.description
    if about["name"] != measured.name:
        raise ValueError(f"the description of {measured.name} is that of {about['name']}")
    return Metric(**about)


def own_metrics(known: dict[str, Metric]) -> list[Metric]:
    """Of what `metrics_of` returned, the metrics that only their measure's file knows and that have a title."""
    return [metric for metric in known.values() if metric.title and metric.name not in METRICS]
