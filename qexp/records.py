"""The results of runs: measurements, and the record that holds all of one run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

ONLY_SHOWN = ("disturbed", "emulated")  # kinds of measurements by which nothing may be ranked
FP32_ENGINE = "fp32_engine"  # in the environment of another device: the engine with which all on it is compared
LOCAL = "local"  # name of the machine of qexp itself, which params leave out


@dataclass(frozen=True)
class Measurement:
    """The value of one metric, made by `Metric.of` in qexp.metrics.

    Attributes:
        kind: How the value came about: `measured`, `estimated` or `simulated`, `disturbed` if it was measured while
            something else used the machine, or `emulated` if one processor imitated another.
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
        params: What tables show: model, data, method, bits, engine, batch_size, threads and seed, and the device
            if that is not the machine of qexp itself.
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
        """All values by the names of their metrics, except those that are only shown, which nothing may rank."""
        return {m.name: m.value for m in self.measurements if m.kind not in ONLY_SHOWN}

    @property
    def only_shown(self) -> dict[str, float]:
        """The values that were disturbed or emulated."""
        return {m.name: m.value for m in self.measurements if m.kind in ONLY_SHOWN}

    @property
    def disturbed(self) -> dict[str, float]:
        """The values that were disturbed, and are measured again when they are asked for again."""
        return {m.name: m.value for m in self.measurements if m.kind == "disturbed"}

    @property
    def emulated(self) -> bool:
        """Whether the processor was emulated."""
        return any(m.kind == "emulated" for m in self.measurements)

    @property
    def device(self) -> str:
        """Name of the device on which it was measured. It is `local` for the machine of qexp itself."""
        return str(self.params.get("device", LOCAL))

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
