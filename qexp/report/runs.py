"""The runs of a report: records with their folders, found by sweep, kept by conditions, and the groups in which they may be compared."""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexp.report.options import option_texts
from qexp.tracking.store import read_folders
from qexp.types import Record, UserError, nearest

SAME_IMAGES = ("data", "image_size")  # accuracies of different images say nothing of each other
SAME_CALL = ("batch_size", "threads", "machine")  # nor times of different calls, nor of different machines
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "!=": operator.ne, "<=": operator.le, ">=": operator.ge, "=": operator.eq, "<": operator.lt, ">": operator.gt,
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A record and the folder that it lies in."""

    record: Record
    folder: Path

    @functools.cached_property
    def names(self) -> dict[str, Any]:
        """What a run can be found by: parameters, options of its method, machine, sweep, status, kind and metrics."""
        record = self.record
        about = {name: getattr(record, name) for name in ("sweep", "status", "kind")}
        host = {"machine": record.environment["host"]} if "host" in record.environment else {}
        unlabelled = {"label": record.params.get("method")}  # of a run that no artifact was made for
        return {**option_texts(record), **unlabelled, **record.params, **host, **about, **record.metrics}


def read_runs(outputs: Path, sweep: str) -> list[Run]:
    """The runs of the sweep of that name, of the `latest`, or of `all`: then without those that a later sweep took over.

    Errors: UserError for unknown sweeps, and where there is none.
    """
    folders = sweeps_with_records(outputs)
    if not folders:
        raise UserError(
            f"{outputs} holds no finished runs: give outputs=FOLDER, or make some with compress.py or benchmark.py."
        )
    if sweep == "all":
        found = [run for folder in folders for run in runs_of(folder)]
        return [run for run in found if not run.record.reused]
    if sweep == "latest":
        return runs_of(folders[-1])
    chosen = [folder for folder in folders if folder.name == sweep]
    if not chosen:
        raise UserError(
            f"There is no sweep={sweep} in {outputs}. {nearest(sweep, ['latest', 'all', *(f.name for f in folders)])}"
        )
    return runs_of(chosen[0])


def runs_of(sweep: Path) -> list[Run]:
    return [Run(record, folder) for folder, record in read_folders(sweep).items()]


def sweeps_with_records(outputs: Path) -> list[Path]:
    """Folders of sweeps, the newest last, as their names begin with the time."""
    return [folder for folder in sorted((outputs / "sweeps").glob("*")) if any(folder.glob("*/record.json"))]


def where(runs: list[Run], conditions: str) -> list[Run]:
    """The runs for which all conditions hold: `NAME=VALUE`, with `!=`, `<`, `>`, `<=`, `>=` too, joined by `,` or `and`.

    Where a value has commas of its own, it stands in quotes. A run that has no such name meets none of its conditions but `!=`.
    Errors: UserError for what is no condition, and names that no run has.
    """
    known = sorted({name for run in runs for name in run.names})
    tests = [_condition(text, known) for text in _parts(conditions)]
    return [run for run in runs if all(test(run) for test in tests)]


def _parts(conditions: str) -> list[str]:
    parts = re.findall(r"""(?:"[^"]*"|'[^']*'|(?!\s+and\s)[^,])+""", conditions)
    return [part for text in parts if (part := re.sub(r"^\s*and\s+", "", text).strip())]


def _condition(text: str, known: list[str]) -> Callable[[Run], bool]:
    found = re.fullmatch(r"\s*([\w.\-]+)\s*(!=|<=|>=|=|<|>)\s*(.*)", text)
    if not found:
        raise UserError(
            f"where={text!r} is no condition. Give NAME=VALUE, or one of {' '.join(COMPARISONS)} between the two."
        )
    name, sign, given = found[1], found[2], found[3].strip().strip("\"'")
    check_names([name], known, "where")
    if sign in ("<", ">", "<=", ">=") and _number(given) is None:
        raise UserError(f"where={text!r} compares with what is no number: {given!r}.")

    def test(run: Run) -> bool:
        if run.names.get(name) is None:
            return sign == "!="
        value, number = run.names[name], _number(given)
        if number is not None and (own := _number(value)) is not None:
            return COMPARISONS[sign](own, number)
        return sign in ("=", "!=") and COMPARISONS[sign](str(value), given)

    return test


def _number(value: object) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def check_names(names: Iterable[str], known: Iterable[str], option: str) -> None:
    """Errors: UserError naming the first that is not known, and the nearest."""
    known = list(known)
    for name in names:
        if name not in known:
            raise UserError(f"{option}: no run has a {name!r}. {nearest(name, known)}")


def grouped(runs: list[Run], names: Iterable[str]) -> dict[tuple[str, ...], list[Run]]:
    """Runs by the values of the names, in the order of their first."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(str(run.names.get(name, "")) for name in names), []).append(run)
    return groups


def differing(runs: list[Run], names: Iterable[str]) -> list[str]:
    """Those of the names that do not have the same value in all runs that have them: one that failed may not know its image size."""
    return [name for name in names if len({str(run.names[name]) for run in runs if name in run.names}) > 1]
