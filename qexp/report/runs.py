"""Finds the runs of a report by sweep, filters them by conditions, and groups those that may be compared."""

from __future__ import annotations

import functools
import json
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qexp.metrics import METRICS
from qexp.records import Record
from qexp.report.options import option_texts
from qexp.report.terms import HEAT
from qexp.tracking.store import read_folders
from qexp.types import UserError, nearest, typed

HEAT_FILE = "heat.json"  # in the folder of a sweep
SAME_IMAGES = ("data", "image_size")  # accuracies on different images cannot be compared
SAME_CALL = ("batch_size", "threads", "machine", "device")  # nor can times of different calls or machines
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "!=": operator.ne, "<=": operator.le, ">=": operator.ge, "=": operator.eq, "<": operator.lt, ">": operator.gt,
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A record and the folder that holds it.

    Attributes:
        record: The record.
        folder: The folder.
        terms: Its metrics on equal terms with the runs that it is compared with, if these are known.
    """

    record: Record
    folder: Path
    terms: Mapping[str, float] | None = None

    @property
    def ranked(self) -> Mapping[str, float]:
        """The metrics by which the run is ranked."""
        return self.record.metrics if self.terms is None else self.terms

    @functools.cached_property
    def names(self) -> dict[str, Any]:
        """Everything that a run can be found by, with its values.

        These are parameters, options of the method, machine, sweep, status, kind and metrics.
        """
        record = self.record
        about = {name: getattr(record, name) for name in ("sweep", "status", "kind")}
        host = {"machine": record.environment["host"]} if "host" in record.environment else {}
        unlabelled = {"label": record.params.get("method")}  # for a run without an artifact, which has no label
        device = {"device": record.device}
        return {**option_texts(record), **unlabelled, **record.params, **device, **host, **about, **record.metrics}


def read_runs(outputs: Path, sweep: str) -> list[Run]:
    """Read the runs of a sweep, or of all sweeps.

    Args:
        outputs: Folder with the outputs of sweeps.
        sweep: Name of a sweep, `latest`, or `all`, which leaves out the copies of runs that a later sweep reused.

    Raises:
        UserError: The sweep is unknown, or no sweep has a record.
    """
    folders = sweeps_with_records(outputs)
    if not folders:
        raise UserError(
            f"{outputs} holds no finished runs: give outputs=FOLDER, or make some with {typed('compress')} or "
            f"{typed('benchmark')}."
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
    """The runs of a sweep, with what their heat has shown."""
    heat = read_heat(sweep)
    return [Run(with_heat(record, heat), folder) for folder, record in read_folders(sweep).items()]


def read_heat(sweep: Path) -> dict[str, list[float]]:
    """The time of runs relative to the fastest of their heat, with its interval, by the keys of their records."""
    try:
        return json.loads((sweep / HEAT_FILE).read_text())
    except FileNotFoundError:
        return {}


def with_heat(record: Record, heat: Mapping[str, Sequence[float]]) -> Record:
    """The record with its result in the heat, if it has one."""
    names = (HEAT.name, *HEAT.bounds)
    taken = [METRICS[name].of(value) for name, value in zip(names, heat.get(record.key, ()), strict=False)]
    return replace(record, measurements=(*record.measurements, *taken))


def sweeps_with_records(outputs: Path) -> list[Path]:
    """Folders of sweeps that have records. The newest is last, because their names begin with the time."""
    return [folder for folder in sorted((outputs / "sweeps").glob("*")) if any(folder.glob("*/record.json"))]


def where(runs: list[Run], conditions: str) -> list[Run]:
    """Keep the runs for which all conditions hold.

    A run that has no value for a name meets none of the name's conditions, except those with `!=`.

    Args:
        runs: Runs to choose from.
        conditions: Conditions such as `NAME=VALUE`, also with `!=`, `<`, `>`, `<=` or `>=`, joined by `,` or `and`. A
            value that contains commas must be in quotes.

    Raises:
        UserError: A condition cannot be read, or no run has a name in it.
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
    """Check that names are known.

    Args:
        names: Names to check.
        known: Names that runs have.
        option: Name of the option that gave the names, for the message.

    Raises:
        UserError: A name is unknown. The message says which known names are like it.
    """
    known = list(known)
    for name in names:
        if name not in known:
            raise UserError(f"{option}: no run has a {name!r}. {nearest(name, known)}")


def grouped(runs: list[Run], names: Iterable[str]) -> dict[tuple[str, ...], list[Run]]:
    """Group the runs by their values of the names. The groups are in the order of their first runs."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(str(run.names.get(name, "")) for name in names), []).append(run)
    return groups


def differing(runs: list[Run], names: Iterable[str]) -> list[str]:
    """The names whose values differ between the runs.

    A run without a value does not count, because one that failed may not know its image size.
    """
    return [name for name in names if len({str(run.names[name]) for run in runs if name in run.names}) > 1]
