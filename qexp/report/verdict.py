"""What the rows say, in words. It describes them: whoever chooses between many variants does so on the validation images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qexp.report.axes import AXES, Axis, default_benefit
from qexp.report.options import differing_options, option_suffix
from qexp.report.pareto import knee, pareto_front
from qexp.report.runs import SAME_CALL, SAME_IMAGES, Run, differing, grouped
from qexp.report.table import percent, significant, tied, times

SIGNIFICANT = 0.05  # p-value from which on no difference is claimed
BEST_FP32 = "speedup_vs_best_fp32"
GAINS = {"speedup": "fp32 on eager PyTorch", BEST_FP32: "the best fp32 engine"}
LATENCY, SIZE = AXES["latency_ms"], AXES["size_mb"]
NO_ACCURACY = "No accuracy was measured: these are pretend images, or random weights."
SETTING = {"data": "", "image_size": "{} pixels", "batch_size": "batch {}", "threads": "{} threads", "machine": "on {}"}
CAUTION = (
    "The verdict describes these rows. To choose between many variants, sweep with measure.accuracy.part=validation."
)


@dataclass(frozen=True)
class Verdict:
    """title: which runs were compared; sentences: what they show."""

    title: str
    sentences: tuple[str, ...]


def verdicts(runs: Sequence[Run], points: float) -> list[Verdict]:
    """A verdict for each model on the same images, with calls of the same shape on the same machine, where several runs finished; and
    on the knee of the front of all models.

    points: percentage points of top-1 below fp32 that are accepted.
    """
    finished = [run for run in runs if run.record.status == "finished"]
    apart = differing(finished, SETTING)
    found: list[Verdict] = []
    for setting, members in grouped(finished, SAME_IMAGES + SAME_CALL).items():
        texts = zip(SAME_IMAGES + SAME_CALL, setting, strict=True)
        place = [(SETTING[name] or "{}").format(value) for name, value in texts if name in (*apart, "data") and value]
        models = grouped(members, ["model"])
        for (model,), rows in models.items():
            if len(rows) > 1:
                found.append(Verdict(", ".join([model, *place]), tuple(of_model(rows, default_benefit(rows), points))))
        if len(models) > 1 and (said := knees(members, default_benefit(members))):
            found.append(Verdict(", ".join(["all models", *place]), tuple(said)))
    return found


def of_model(rows: list[Run], benefit: Axis | None, points: float) -> list[str]:
    names = Names(rows)
    if benefit is None:
        return list(
            filter(None, [NO_ACCURACY, names.leader("Fastest", rows, LATENCY), names.leader("Smallest", rows, SIZE)])
        )
    drop = f"{benefit.metric}_drop"
    compared = [run for run in rows if {benefit.metric, drop} <= run.record.metrics.keys()]
    if not compared:
        return ["No run was compared with fp32."]
    accepted = [run for run in compared if 100 * _value(run, drop) <= points]
    fp32 = percent(max(_value(run, benefit.metric) + _value(run, drop) for run in compared))
    within = f"within {points:g} point{'s' * (points != 1)} of fp32 ({fp32} %)"
    said = []
    if not accepted:
        nearest = min(compared, key=lambda run: _value(run, drop))
        said.append(
            f"No run is {within}; the nearest is {names.of(nearest, benefit)}, {percent(_value(nearest, drop))} points lower."
        )
    said += [
        names.leader(f"Fastest {within}", accepted, LATENCY, benefit),
        names.leader(f"Smallest {within}", accepted, SIZE, benefit),
    ]
    smallest = least(compared, SIZE)
    if smallest and smallest not in accepted:
        said.append(
            f"Smallest of all: {names.of(smallest, SIZE, benefit)}, {percent(_value(smallest, drop))} points lower than fp32."
        )
    return [*filter(None, said), *knees(rows, benefit), *difference(compared, names, benefit)]


def least(rows: list[Run], axis: Axis) -> Run | None:
    return min(
        (run for run in rows if axis.metric in run.record.metrics),
        key=lambda run: run.record.metrics[axis.metric],
        default=None,
    )


def _value(run: Run, metric: str) -> float:
    return run.record.metrics[metric]


def knees(rows: list[Run], benefit: Axis | None) -> list[str]:
    """Of the fronts of accuracy against latency and against size, where these have one and differ in accuracy by more than chance."""
    said = []
    for cost in (LATENCY, SIZE) if benefit else ():
        assert benefit
        drawn = [run for run in rows if {benefit.metric, cost.metric} <= run.record.metrics.keys()]
        values = [[run.record.metrics[axis.metric] for run in drawn] for axis in (cost, benefit)]
        best, title = knee(*values), cost.title.partition(",")[0]
        if best is None:
            continue
        front = pareto_front(*values)
        if apart(drawn[front[0]], drawn[front[-1]], benefit):
            said.append(f"Knee of the front of accuracy against {title}: {Names(rows).of(drawn[best], cost, benefit)}.")
        else:
            said.append(
                f"The front of accuracy against {title} has no knee: its runs do not differ in accuracy by more than chance."
            )
    return said


def apart(cheapest: Run, dearest: Run, benefit: Axis) -> bool:
    """Whether the ends of a front differ in accuracy by more than chance: their intervals do not overlap, or McNemar's test tells the
    cheapest from fp32."""
    ours, theirs = cheapest.record.metrics, dearest.record.metrics
    overlap = {benefit.low, benefit.high} <= ours.keys() & theirs.keys() and ours[benefit.high] >= theirs[benefit.low]
    return not overlap or ours.get(mcnemar_p(benefit), 1.0) < SIGNIFICANT


def mcnemar_p(benefit: Axis) -> str:
    return "val_mcnemar_p" if benefit.metric.startswith("val_") else "mcnemar_p"


def difference(compared: list[Run], names: Names, benefit: Axis) -> list[str]:
    """Which runs differ from fp32 by more than chance, where that was tested."""
    metric = mcnemar_p(benefit)
    tested = [run for run in compared if metric in run.record.metrics and run.record.params.get("method") != "none"]
    same = {names.short(run): None for run in tested if _value(run, metric) >= SIGNIFICANT}
    other = {names.short(run): None for run in tested if _value(run, metric) < SIGNIFICANT}
    said = [
        f"No difference from fp32 in accuracy was shown (McNemar's test, p ≥ {SIGNIFICANT}): {', '.join(same)}."
    ] * bool(same)
    return said + [f"A difference was shown (p < {SIGNIFICANT}): {', '.join(other)}."] * bool(other)


class Names:
    """How runs are called beside each other, without what they have in common."""

    def __init__(self, rows: list[Run]):
        self.options = differing_options([run.record for run in rows])
        self.with_model = len({run.record.params["model"] for run in rows}) > 1

    def short(self, run: Run) -> str:
        params = run.record.params
        model = f"{params['model']} " * self.with_model
        return f"{model}{params.get('label', params['method'])} on {params['engine']}{option_suffix(run.record, self.options)}"

    def of(self, run: Run, *axes: Axis) -> str:
        """With its values on these axes, and the interval of the first, where it has one."""
        shown = [self.value(run, axis) for axis in axes if axis.metric in run.record.metrics]
        return f"{self.short(run)}, {', '.join(shown)}"

    def value(self, run: Run, axis: Axis) -> str:
        value, unit = run.record.metrics[axis.metric], axis.title.rpartition(", ")[2]
        if axis.factor == 100:
            return f"{percent(value)} %"
        metrics = run.record.metrics
        interval = (
            f" ({significant(metrics[axis.low])} to {significant(metrics[axis.high])})" if axis.low in metrics else ""
        )
        return f"{significant(value)} {unit}{interval}"

    def leader(self, title: str, rows: list[Run], axis: Axis, *others: Axis) -> str:
        """The run that costs least, and those that cost as much as far as digits or intervals tell; empty where none has that cost."""
        best = least(rows, axis)
        if best is None:
            return ""
        metrics = best.record.metrics
        gains = {
            metrics[name]: other for name, other in reversed(GAINS.items()) if name in metrics
        }  # one, where both are the same engine
        faster = [f"{times(gain)} as fast as {other}" for gain, other in reversed(gains.items())] if axis.timed else []
        rivals = [run for run in rows if run is not best and axis.metric in run.record.metrics]
        bounds = (axis.low, axis.high) if axis.low else ()
        ties = [
            self.short(run) for run in rivals if tied(run.record.metrics, metrics, axis.metric, significant, bounds)
        ]
        text = f"{title}: {', '.join([self.of(best, axis, *others), *faster])}."
        if axis.timed and metrics.get(f"{BEST_FP32}_high", math.inf) < 1:
            text += f" fp32 is faster than it: {best.record.notes.get(BEST_FP32, 'on another engine')}."
        return text + (f" Not told apart from it: {', '.join(dict.fromkeys(ties))}." if ties else "")


def caution(found: Sequence[Verdict]) -> str:
    return CAUTION if any(NO_ACCURACY not in verdict.sentences for verdict in found) else ""


def as_text(found: Sequence[Verdict]) -> str:
    """As Markdown."""
    blocks = [
        f"**{verdict.title}**\n\n" + "\n".join(f"- {sentence}" for sentence in verdict.sentences) for verdict in found
    ]
    return "\n\n".join(filter(None, [*blocks, caution(found)]))
