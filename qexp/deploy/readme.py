"""What a deployment says of itself: what it is, how to run it, and what was measured where."""

from __future__ import annotations

from qexp.engine.base import Engine
from qexp.tracking.store import records_of
from qexp.types import Artifact, Executable, Record

COLUMNS = {
    "top1": ("top-1 %", 100), "top5": ("top-5 %", 100), "size_mb": ("size MB", 1), "latency_ms": ("ms per call", 1),
    "latency_p99_ms": ("p99 ms", 1), "memory_mb": ("memory MB", 1), "load_ms": ("load ms", 1),
}  # fmt: skip


def readme(artifact: Artifact, engine: Engine, executable: Executable, packages: dict[str, str]) -> str:
    needs = " ".join(f"{package}=={packages[package]}" for package in engine.packages)
    trust = (
        "\nThe model file is of a format that can carry code: run it only if you know who made it.\n"
        if engine.carries_code
        else ""
    )
    fixed = (
        ""
        if executable.file == engine.file
        else f" Made for calls of {executable.batch} image(s); others are split or filled up."
    )
    return f"""# {artifact.model}, {artifact.label}, for {engine.name}

Tells {artifact.data.num_classes} classes of {artifact.data.name} apart ({", ".join(artifact.data.class_names[:5])}, ...).{fixed}
{trust}
```
pip install {needs} numpy pillow    # requirements.txt; without Pillow, give arrays
python infer.py IMAGE ...           # the five most probable classes
python benchmark.py                 # times it on this machine, writes record.json
```

`labels.json` names the classes, `preprocessing.json` says what becomes of an image, `{executable.file}` is the network. On the machine with
the other results, `python -m qexp.tracking import record.json` adds those of this one.

## Measured

{figures([record for record in records_of(artifact) if record.params["engine"] == engine.name])}"""


def figures(records: list[Record]) -> str:
    """A table of what was measured, a row per run."""
    if not records:
        return "Nothing yet on this engine.\n"
    titles = ["machine", "batch", "threads", *(title for title, _ in COLUMNS.values()), "when"]
    rows = [titles, ["---"] * len(titles), *(row(record) for record in records)]
    notes = {f"- {name}: {text}" for record in records for name, text in record.notes.items() if name in COLUMNS}
    return (
        "\n".join("| " + " | ".join(cells) + " |" for cells in rows)
        + "\n"
        + "".join(f"\n{note}" for note in sorted(notes))
        + "\n"
    )


def row(record: Record) -> list[str]:
    values, where = record.metrics, record.environment
    cells = {name: f"{factor * values[name]:.4g}" if name in values else "–" for name, (_, factor) in COLUMNS.items()}
    if "latency_low_ms" in values:
        cells["latency_ms"] += f" ({values['latency_low_ms']:.4g} to {values['latency_high_ms']:.4g})"
    machine = f"{where.get('host', '?')}, {where.get('cpu', '?')}"
    return [
        machine,
        *(str(record.params[name]) for name in ("batch_size", "threads")),
        *cells.values(),
        record.created[:10],
    ]
