"""The answer of a search within limits, as a file in the folder of its sweep and as text for people."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from qexp.files import write_json
from qexp.metrics import METRICS
from qexp.records import Record
from qexp.report.render import NONE, Table, markdown
from qexp.within_limits.limits import BOUNDED, DROP, MISSED, SEEN, SURELY, UNKNOWN, Judged
from qexp.within_limits.seen import Result, Seen

FILE = "within.json"  # in the folder of the sweep
PICTURE = "within.png"
OTHERS = 3  # next best ones that are named
SIGNIFICANT = 0.05  # p-value below which a difference is claimed
REACHED = {name: BOUNDED[name] for name in (DROP, "latency_ms", "size_mb", "memory_mb", "macs_m")}


@dataclass(frozen=True)
class Row:
    """One trial, as the answer tells it.

    Attributes:
        step: The step that it belonged to.
        name: What was tried.
        status: Status of its record, or `same` if it is the same run as another trial.
        why: Whether it holds the limits, and if not, why.
        values: What it reached, by the names of `REACHED`, in their units.
        seconds: How long it took.
        at: Seconds that the search had taken when it ended.
        holds: Whether it holds all limits.
    """

    step: str
    name: str
    status: str
    why: str
    values: dict[str, float]
    seconds: float
    at: float
    holds: bool


@dataclass(frozen=True)
class Answer:
    """What a search found.

    Attributes:
        sentence: The answer in one sentence.
        chosen: Name of the chosen trial, or empty if none holds the limits.
        limits: What each limit was, and what the chosen or the nearest trial reached.
        bounds: The limits, by name.
        minimised: What was minimised.
        rows: All trials, in their order.
        dropped: Why other trials were left out or given up, by their names.
        others: The next best that hold, or the nearest if none does.
        front: The trials that hold and that no other beats, if several things were minimised.
        test: What the test images say of the chosen one.
        command: The command that makes the artifact again without the search.
        artifact: Folder of the artifact.
        folder: Folder that is ready to deploy, or why there is none.
        words: The overrides of the chosen trial.
        caveat: Why the validation images may show smaller losses than there are, if that is so.
    """

    sentence: str
    chosen: str
    limits: list[str]
    bounds: dict[str, float]
    minimised: list[str]
    rows: list[Row]
    dropped: dict[str, str]
    others: list[str]
    front: list[str] = field(default_factory=list)
    test: str = ""
    command: str = ""
    artifact: str = ""
    folder: str = ""
    words: list[str] = field(default_factory=list)
    caveat: str = ""

    def write(self, sweep: Path) -> None:
        write_json(sweep / FILE, asdict(self))

    @classmethod
    def read(cls, sweep: Path) -> Answer | None:
        """Read the answer from a sweep's folder. None if the sweep was no search within limits."""
        try:
            values = json.loads((sweep / FILE).read_text())
        except FileNotFoundError:
            return None
        return cls(**{**values, "rows": [Row(**row) for row in values["rows"]]})

    @property
    def lines(self) -> list[str]:
        """The answer without its tables, a line for each thing that it says."""
        listed = {
            "": [self.sentence],
            "limits": self.limits,
            "note": [self.caveat] if self.caveat else [],
            "on test images": [self.test] if self.test else [],
            "Pareto set": self.front,
            "next best" if self.chosen else "nearest": self.others,
            "again without the search": [self.command] if self.command else [],
            "artifact": [self.artifact] if self.artifact else [],
            "ready to deploy": [self.folder] if self.folder else [],
        }
        return [f"{f'{what}: ' * bool(what)}{line}" for what, lines in listed.items() for line in lines]

    def table(self) -> Table:
        """All trials, in the order in which they were tried."""
        shown = [name for name in REACHED if any(name in row.values for row in self.rows)]
        titles = ("tried", *("points lost" if name == DROP else name for name in shown), "took s", "minute", "limits")
        rows = tuple(
            (
                row.name,
                *(f"{row.values[name]:.3g}" if name in row.values else NONE for name in shown),
                f"{row.seconds:.0f}",
                f"{row.at / 60:.1f}",
                row.why,
            )
            for row in self.rows
        )
        marks = frozenset((place, 0) for place, row in enumerate(self.rows) if row.name == self.chosen)
        return Table(titles, rows, marks=marks, left=frozenset({0, len(titles) - 1}), title="Search within limits")

    def markdown(self) -> str:
        listed = "\n".join(f"- {line}" for line in self.lines[1:])
        dropped = "\n".join(f"- {name}: {why}" for name, why in self.dropped.items())
        left_out = f"Left out or given up:\n\n{dropped}\n\n" if dropped else ""
        return f"## {self.sentence}\n\n{listed}\n\n{markdown(self.table())}\n\n{left_out}"


def row_of(seen: Seen, result: Result) -> Row:
    """Tell what came of a trial."""
    trial, record = result.trial, result.record
    if record is None:
        return Row(trial.step, trial.name, "same", "the same run as another trial", {}, 0.0, result.at, False)
    if not result.finished:
        return Row(trial.step, trial.name, record.status, f"{record.status}: {record.reason}", {}, result.seconds,
                   result.at, False)  # fmt: skip
    metrics = record.metrics
    values = {name: m.factor * metrics[m.name] for name, m in REACHED.items() if m.name in metrics}
    return Row(
        trial.step, trial.name, record.status, verdict(seen.judged(result)), values, result.seconds, result.at,
        seen.holds(result),
    )  # fmt: skip


def verdict(judged: Sequence[Judged]) -> str:
    """Say in a few words how a run stands to all limits together."""
    bad = [f"{each.name} {each.how}" for each in judged if each.how in (MISSED, UNKNOWN)]
    if bad:
        return ", ".join(bad)
    return SURELY if all(each.how == SURELY for each in judged) else SEEN


def reached(result: Result, minimised: Sequence[str]) -> str:
    """A result by its name, and what it reached of what is minimised."""
    assert result.record
    metrics = result.record.metrics
    values = [
        f"{name} {BOUNDED[name].factor * metrics[BOUNDED[name].name]:.3g}" for name in minimised
        if BOUNDED[name].name in metrics
    ]  # fmt: skip
    return f"{result.trial.name}: {', '.join(values)}"


def answer_of(seen: Seen, chosen: Result | None, minutes: float) -> Answer:
    """Put the answer together, without what the test images say and what is made of the chosen one.

    Args:
        seen: The state of the search at its end.
        chosen: The chosen trial, or None if none holds the limits.
        minutes: Minutes that the search took.
    """
    told = chosen or next(iter(seen.nearest), None)
    minimised = [*seen.limits.minimise]
    judged = seen.judged(told) if told else []
    took = f"after {len(seen.results)} trials in {minutes:.1f} minutes"
    if chosen:
        what = reached(chosen, minimised).removeprefix(f"{chosen.trial.name}: ")
        sentence = f"{chosen.trial.name} holds all limits with the least {' and '.join(minimised)} ({what}), {took}."
    elif told:
        sentence = (
            f"Nothing that was tried holds all limits, {took}. The nearest is {told.trial.name}: "
            f"{missed_by(seen, told)}."
        )
    else:
        sentence = f"Nothing that was tried ended, {took}: the table says why."
    rest = [result for result in (seen.holding if chosen else seen.nearest) if result is not told]
    front = seen.front if len(minimised) > 1 else []
    return Answer(
        sentence=sentence, chosen=chosen.trial.name if chosen else "", limits=[str(each) for each in judged],
        bounds=seen.limits.given, minimised=minimised, rows=[row_of(seen, result) for result in seen.results],
        dropped=seen.dropped,
        others=[reached(result, minimised) if chosen else f"{result.trial.name}: {missed_by(seen, result)}"
                for result in rest[:OTHERS]],
        front=[reached(result, minimised) for result in front],
    )  # fmt: skip


def missed_by(seen: Seen, result: Result) -> str:
    """The limits that a result does not hold."""
    return "; ".join(str(each) for each in seen.judged(result) if not seen.limits.hold([each]))


def on_test_images(record: Record) -> str:
    """Say what the test images show of a run, beside fp32."""
    metrics, top1 = record.metrics, METRICS["top1"]
    if not {"top1", "top1_drop"} <= metrics.keys():
        return record.notes.get("top1", "no accuracy was measured")
    p = metrics.get("mcnemar_p", math.nan)
    shown = "a difference was shown" if p < SIGNIFICANT else "no difference was shown"
    interval = [100 * metrics[f"top1_drop_{bound}"] for bound in ("low", "high")]
    return (
        f"top-1 {top1.text(metrics['top1'])} %{top1.interval(metrics)}, fp32 "
        f"{top1.text(metrics['top1'] + metrics['top1_drop'])} %: {100 * metrics['top1_drop']:.2f} points lost "
        f"({interval[0]:.2f} to {interval[1]:.2f}); {shown} (McNemar's test, p = {p:.2g})"
    )
