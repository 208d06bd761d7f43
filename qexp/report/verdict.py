"""Says in words what the runs show.

A verdict only describes the runs. Choosing between many variants is done on the validation images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qexp.metrics import METRICS, VALIDATION, Metric, times
from qexp.records import FP32_ENGINE
from qexp.report.axes import default_benefit
from qexp.report.options import differing_options, option_suffix
from qexp.report.pareto import knee, pareto_front
from qexp.report.runs import SAME_CALL, SAME_IMAGES, Run, differing, grouped
from qexp.report.table import one_machine_each, tied
from qexp.report.terms import equal_terms

EAGER = "eager"  # the engine of the baseline wherever there is torch
SIGNIFICANT = 0.05  # p-value below which a difference is claimed
BEST_FP32 = "speedup_vs_best_fp32"
FAST = 2.0  # times as fast as the best fp32, below which a verdict says what holds a run back
EXPLAINED = 3  # runs of which a verdict says that, the fastest first
GAINS = (METRICS["speedup"], METRICS[BEST_FP32])
LATENCY, SIZE = METRICS["latency_ms"], METRICS["size_mb"]
NO_ACCURACY = "No accuracy was measured: these are pretend images, or random weights."
SETTING = {
    "data": "", "image_size": "{} pixels", "batch_size": "batch {}", "threads": "{} threads", "machine": "on {}",
    "device": "on {}",
}  # fmt: skip
CAUTION = (
    "The verdict describes these rows. To choose between many variants, sweep with measure.accuracy.part=validation."
)


@dataclass(frozen=True)
class Verdict:
    """What a group of runs shows.

    Attributes:
        title: Which runs were compared.
        sentences: What they show.
        seen_test: Whether they judge by accuracy on the test images.
    """

    title: str
    sentences: tuple[str, ...]
    seen_test: bool


def verdicts(runs: Sequence[Run], points: float) -> list[Verdict]:
    """Write a verdict on each model, and one on the knees of the fronts of all models together.

    Only runs on the same images with the same batch size, threads and machine are compared. A model has a verdict if
    several such runs finished.

    Args:
        runs: Runs to compare.
        points: Percentage points of top-1 below fp32 that are accepted.
    """
    finished = [run for run in runs if run.record.status == "finished"]
    apart = differing(finished, SETTING)
    if one_machine_each([run.record for run in finished]):
        apart = [name for name in apart if name != "machine"]  # the device says it already
    found: list[Verdict] = []
    for setting, together in grouped(finished, SAME_IMAGES + SAME_CALL).items():
        models = {model: on_equal_terms(rows) for (model,), rows in grouped(together, ["model"]).items()}
        members = [run for rows in models.values() for run in rows]
        texts = zip(SAME_IMAGES + SAME_CALL, setting, strict=True)
        place = [(SETTING[name] or "{}").format(value) for name, value in texts if name in (*apart, "data") and value]
        for model, rows in models.items():
            if len(rows) > 1:
                benefit = default_benefit(rows)
                said = of_model(rows, benefit, points)
                found.append(Verdict(", ".join([model, *place]), tuple(said), benefit == METRICS["top1"]))
        benefit = default_benefit(members)
        if len(models) > 1 and (said := knees(members, benefit)):
            found.append(Verdict(", ".join(["all models", *place]), tuple(said), benefit == METRICS["top1"]))
    return found


def on_equal_terms(rows: list[Run]) -> list[Run]:
    """The runs of one model, ranked as if they had been timed at one moment."""
    return [replace(run, terms=terms) for run, terms in zip(rows, equal_terms([r.record for r in rows]), strict=True)]


def of_model(rows: list[Run], benefit: Metric | None, points: float) -> list[str]:
    """Write the sentences on the runs of one model.

    Args:
        rows: Finished runs of the model that may be compared.
        benefit: Accuracy to judge by, or None if no accuracy was measured.
        points: Percentage points of top-1 below fp32 that are accepted.
    """
    names = Names(rows)
    if benefit is None:
        leaders = [names.leader("Fastest", rows, LATENCY), names.leader("Smallest", rows, SIZE)]
        return [*filter(None, [NO_ACCURACY, *leaders]), *held_back(rows, names)]
    drop = METRICS[f"{benefit.name}_drop"]
    compared = [run for run in rows if {benefit.name, drop.name} <= run.record.metrics.keys()]
    if not compared:
        return ["No run was compared with fp32."]
    accepted = [run for run in compared if drop.factor * _value(run, drop) <= points]
    fp32 = benefit.text(max(_value(run, benefit) + _value(run, drop) for run in compared))
    within = f"within {points:g} point{'s' * (points != 1)} of fp32 ({fp32} %)"
    said = []
    if not accepted:
        nearest = min(compared, key=lambda run: _value(run, drop))
        said.append(
            f"No run is {within}; the nearest is {names.of(nearest, benefit)}, "
            f"{drop.text(_value(nearest, drop))} points lower."
        )
    said += [
        names.leader(f"Fastest {within}", accepted, LATENCY, benefit),
        names.leader(f"Smallest {within}", accepted, SIZE, benefit),
    ]
    smallest = least(compared, SIZE)
    if smallest and smallest not in accepted:
        said.append(
            f"Smallest of all: {names.of(smallest, SIZE, benefit)}, "
            f"{drop.text(_value(smallest, drop))} points lower than fp32."
        )
    return [*filter(None, said), *held_back(rows, names), *knees(rows, benefit), *difference(compared, names, benefit)]


def held_back(rows: list[Run], names: Names) -> list[str]:
    """Say of runs that are hardly faster than the best fp32 where their time goes, if the engine's profiler told it."""
    gain = METRICS[BEST_FP32]
    slow = [
        run for run in rows
        if "operators" in run.record.notes and run.record.metrics.get(gain.name, math.inf) < FAST
    ]  # fmt: skip
    slow.sort(key=lambda run: -_value(run, gain))
    return [
        f"{names.short(run)} is {times(_value(run, gain))} as fast as the best fp32: {run.record.notes['operators']}."
        for run in slow[:EXPLAINED]
    ]


def could_be_fastest(rows: list[Run], points: float) -> list[Run]:
    """The runs of one model that may be the fastest of all, or the fastest of those that are accurate enough.

    Args:
        rows: Finished runs of the model that may be compared.
        points: Percentage points of top-1 below fp32 that are accepted.

    Returns:
        The runs that are not told apart from one of the two, the fastest first.
    """
    rows = [run for run in on_equal_terms(rows) if LATENCY.name in run.ranked]
    benefit = default_benefit(rows)
    drop = METRICS[f"{benefit.name}_drop"] if benefit else None
    accepted = [run for run in rows if drop and drop.factor * run.ranked.get(drop.name, math.inf) <= points]
    leaders = [least(among, LATENCY) for among in (rows, accepted)]
    found = [
        run for run in rows
        if any(run is leader or tied(run.ranked, leader.ranked, LATENCY) for leader in leaders if leader)
    ]  # fmt: skip
    return sorted(found, key=lambda run: run.ranked[LATENCY.name])


def least(rows: list[Run], cost: Metric) -> Run | None:
    """The run with the least cost. None if no run has the cost."""
    having = (run for run in rows if cost.name in run.ranked)
    return min(having, key=lambda run: run.ranked[cost.name], default=None)


def _value(run: Run, metric: Metric) -> float:
    return run.record.metrics[metric.name]


def knees(rows: list[Run], benefit: Metric | None) -> list[str]:
    """Name the knees of the fronts of accuracy against latency and against size.

    If a front has a knee, but its ends do not differ in accuracy by more than chance, the sentence says so instead.
    """
    said = []
    for cost in (LATENCY, SIZE) if benefit else ():
        assert benefit
        drawn = [run for run in rows if {benefit.name, cost.name} <= run.record.metrics.keys()]
        values = [[run.ranked[metric.name] for run in drawn] for metric in (cost, benefit)]
        best = knee(*values)
        if best is None:
            continue
        front = pareto_front(*values)
        if apart(drawn[front[0]], drawn[front[-1]], benefit):
            said.append(
                f"Knee of the front of accuracy against {cost.axis}: {Names(rows).of(drawn[best], cost, benefit)}."
            )
        else:
            said.append(
                f"The front of accuracy against {cost.axis} has no knee: "
                "its runs do not differ in accuracy by more than chance."
            )
    return said


def apart(cheapest: Run, dearest: Run, benefit: Metric) -> bool:
    """Whether the ends of a front differ in accuracy by more than chance.

    They do if their intervals do not overlap, or if McNemar's test tells the cheapest run from fp32.
    """
    ours, theirs = cheapest.record.metrics, dearest.record.metrics
    overlap = {*benefit.bounds} <= ours.keys() & theirs.keys() and ours[benefit.high] >= theirs[benefit.low]
    return not overlap or ours.get(mcnemar_p(benefit).name, 1.0) < SIGNIFICANT


def mcnemar_p(benefit: Metric) -> Metric:
    """The metric of McNemar's test on the same images as this accuracy."""
    return METRICS[f"{VALIDATION * benefit.name.startswith(VALIDATION)}mcnemar_p"]


def difference(compared: list[Run], names: Names, benefit: Metric) -> list[str]:
    """Say which runs differ from fp32 by more than chance, among those for which that was tested."""
    metric = mcnemar_p(benefit)
    tested = [
        run for run in compared if metric.name in run.record.metrics and run.record.params.get("method") != "none"
    ]
    same = {names.short(run): None for run in tested if _value(run, metric) >= SIGNIFICANT}
    other = {names.short(run): None for run in tested if _value(run, metric) < SIGNIFICANT}
    said = [
        f"No difference from fp32 in accuracy was shown (McNemar's test, p ≥ {SIGNIFICANT}): {', '.join(same)}."
    ] * bool(same)
    return said + [f"A difference was shown (p < {SIGNIFICANT}): {', '.join(other)}."] * bool(other)


class Names:
    """Names runs that stand beside each other, without what they have in common."""

    def __init__(self, rows: list[Run]):
        self.options = differing_options([run.record for run in rows])
        self.with_model = len({run.record.params["model"] for run in rows}) > 1

    def short(self, run: Run) -> str:
        params = run.record.params
        model = f"{params['model']} " * self.with_model
        return (
            f"{model}{params.get('label', params['method'])} on {params['engine']}"
            f"{option_suffix(run.record, self.options)}"
        )

    def of(self, run: Run, *metrics: Metric) -> str:
        """Name a run with its values of these metrics.

        Costs have their intervals. Accuracies do not, because all runs are scored on the same images, so that the
        interval of a single run does not tell it from the others.
        """
        shown = [self.value(run, metric) for metric in metrics if metric.name in run.record.metrics]
        return f"{self.short(run)}, {', '.join(shown)}"

    def value(self, run: Run, metric: Metric) -> str:
        interval = metric.interval(run.record.metrics) if metric.per_machine else ""
        return f"{metric.text(_value(run, metric))} {metric.unit_shown}{interval}"

    def leader(self, title: str, rows: list[Run], cost: Metric, *others: Metric) -> str:
        """Name the run with the least cost, and the runs that digits or intervals do not tell apart from it.

        Args:
            title: Start of the sentence.
            rows: Runs to choose from.
            cost: Metric of the cost.
            *others: Further metrics of the run to be named.

        Returns:
            The sentences, or an empty text if no run has the cost.
        """
        best = least(rows, cost)
        if best is None:
            return ""
        metrics = best.record.metrics
        text = f"{title}: {', '.join([self.of(best, cost, *others), *(gains(best) if cost.per_machine else [])])}."
        if cost.per_machine and metrics.get(METRICS[BEST_FP32].high, math.inf) < 1:
            text += f" fp32 is faster than it: {best.record.notes.get(BEST_FP32, 'on another engine')}."
        rivals = [run for run in rows if run is not best and cost.name in run.record.metrics]
        ties = [self.short(run) for run in rivals if tied(run.ranked, best.ranked, cost)]
        return text + (f" Not told apart from it: {', '.join(dict.fromkeys(ties))}." if ties else "")


def gains(run: Run) -> list[str]:
    """How much faster a run is than the fp32 baseline of its device, and than the best fp32 if that differs."""
    found = {run.record.metrics[gain.name]: gain for gain in reversed(GAINS) if gain.name in run.record.metrics}
    engine = run.record.environment.get(FP32_ENGINE, EAGER)
    texts = [times(value) + gain.axis.removeprefix("times") for value, gain in reversed(found.items())]
    return [text if engine == EAGER else text.replace("eager PyTorch", f"{engine} there") for text in texts]


def caution(found: Sequence[Verdict]) -> str:
    return CAUTION if any(verdict.seen_test for verdict in found) else ""


def as_text(found: Sequence[Verdict]) -> str:
    """The verdicts as Markdown."""
    blocks = [
        f"**{verdict.title}**\n\n" + "\n".join(f"- {sentence}" for sentence in verdict.sentences) for verdict in found
    ]
    return "\n\n".join(filter(None, [*blocks, caution(found)]))
