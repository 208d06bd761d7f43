"""Writes the README of a deployment: what it is, how to run it, and what was measured on which machine."""

from __future__ import annotations

from qexp.artifact import Artifact, Executable
from qexp.deploy.native import native_example
from qexp.engine.base import Engine
from qexp.metrics import METRICS
from qexp.records import Record
from qexp.report.render import NONE, Table, markdown
from qexp.tracking.store import records_of

COLUMNS = [
    METRICS[name] for name in ("top1", "top5", "size_mb", "latency_ms", "latency_p99_ms", "memory_mb", "load_ms")
]

NATIVE = """
`classify.cpp` does the same in C++, for a binary PPM of the network's size (a PGM for grey):

```
cmake -B build && cmake --build build
build/classify PICTURE.ppm
```
"""


def readme(artifact: Artifact, engine: Engine, executable: Executable, packages: dict[str, str]) -> str:
    """Write the README as Markdown.

    Args:
        artifact: Artifact that is deployed.
        engine: Engine that runs it.
        executable: File that the engine loads.
        packages: Versions of the packages that the deployment needs, by name.
    """
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
    native = NATIVE if native_example(artifact, executable) else ""
    return f"""# {artifact.model}, {artifact.label}, for {engine.name}

Tells {artifact.data.num_classes} classes of {artifact.data.name} apart \
({", ".join(artifact.data.class_names[:5])}, ...).{fixed}
{trust}
```
pip install {needs} numpy pillow    # requirements.txt; without Pillow, give arrays
python infer.py IMAGE ...           # the five most probable classes
python benchmark.py                 # times it on this machine, writes record.json
```

`labels.json` names the classes, `preprocessing.json` says what becomes of an image, \
`{executable.file}` is the network. On the machine with
the other results, `qexp import record.json` adds those of this one.
{native}
## Measured

{figures([record for record in records_of(artifact) if record.params["engine"] == engine.name])}"""


def figures(records: list[Record]) -> str:
    """Make a table of what was measured, with a row for each run, and notes below it."""
    if not records:
        return "Nothing yet on this engine.\n"
    titles = ("machine", "batch", "threads", *(metric.title for metric in COLUMNS), "when")
    shown = Table(titles, tuple(row(record) for record in records), left=frozenset(range(len(titles))))
    known = {metric.name for metric in COLUMNS}
    notes = {f"- {name}: {text}" for record in records for name, text in record.notes.items() if name in known}
    return "\n".join([markdown(shown), *([""] if notes else []), *sorted(notes), ""])


def row(record: Record) -> tuple[str, ...]:
    values, where = record.metrics, record.environment
    return (
        f"{where.get('host', '?')}, {where.get('cpu', '?')}",
        *(str(record.params[name]) for name in ("batch_size", "threads")),
        *(m.text(values[m.name]) + m.interval(values) if m.name in values else NONE for m in COLUMNS),
        record.created[:10],
    )
