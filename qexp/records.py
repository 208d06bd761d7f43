"""The results of runs: measurements, and the record that holds all of one run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Measurement:
    """The value of one metric, made by `Metric.of` in qexp.metrics.

    Attributes:
        kind: How the value came about: `measured`, `estimated` or `simulated`, or `disturbed` if it was measured while
            something else used the machine.
        samples: The single values that it summarises, or empty.
        description: Fields of its `Metric`. Empty if the table in qexp.metrics has the metric.
    """

    name: str
    value: float
    unit: str
    kind: str = "measured"
    samples: tuple[float, ...] = ()
    description: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """The result of one run.

    Attributes:
        kind: What was run, such as `compress` or `benchmark`.
        key: Key of everything that decides the result.
        status: `finished`, `unsupported` or `failed`, or `compressed` if only the artifact was made.
        reason: Why the run is `unsupported` or `failed`, or the artifact's folder name if it is `compressed`.
        label: What tables call the run.
        params: What tables show: model, data, method, bits, engine, batch_size, threads and seed.
        config: The resolved config.
        environment: Machine and versions.
        command: Command line that started the run.
        created: When the record was made, as ISO 8601 in UTC.
        artifact: Folder of the artifact, or empty.
        texts: Tables for people, by file name.
        notes: Why a number is missing or what was left out, by its name.
        reused: Run of an earlier sweep that the record was taken from, as `sweeps/SWEEP/JOB`, or empty.
        seconds: How long the run took, including what was made for it.
    """

    kind: str
    key: str
    sweep: str
    status: str
    reason: str
    label: str
    params: dict[str, Any]
    config: dict[str, Any]
    measurements: tuple[Measurement, ...]
    environment: dict[str, Any]
    command: str
    created: str
    artifact: str = ""
    texts: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    reused: str = ""
    seconds: float = 0.0

    @property
    def metrics(self) -> dict[str, float]:
        """All values by the names of their metrics, except those that were disturbed, which nothing may rank."""
        return {m.name: m.value for m in self.measurements if m.kind != "disturbed"}

    @property
    def disturbed(self) -> dict[str, float]:
        """The values that were disturbed, which are only shown."""
        return {m.name: m.value for m in self.measurements if m.kind == "disturbed"}

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object. Empty descriptions are left out, as in records of earlier versions."""
        values = asdict(self)
        for measurement in values["measurements"]:
            if not measurement["description"]:
                del measurement["description"]
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Record:
        measurements = tuple(Measurement(**{**m, "samples": tuple(m["samples"])}) for m in values["measurements"])
        return cls(**{**values, "measurements": measurements})
