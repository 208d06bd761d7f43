"""Measures what sweeping itself costs.

    uv run python benchmarks/sweep_cost.py [outputs=FOLDER]

It times the command line, a sweep that is started again, each further job and tables of thousands of runs, and it
measures the memory of many jobs. Run it alone on the machine. Everything is written to a temporary folder unless
`outputs` is given.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
from common import ROOT, machine

from qexp.records import Record
from qexp.report.table import csv_table, markdown_table
from qexp.tracking.store import read_records, write_record

LENET = [
    "-m",
    "model=lenet5",
    "data=digits",
    "checkpoint=random",
    "engine=onnxruntime",
    "engine@fp32_engines=onnxruntime",
]
QUICK = [
    "measure.latency.windows=2",
    "measure.latency.window_s=0.01",
    "measure.latency.warmup_s=0.01",
    "measure.latency.calls=2",
]
UNMEASURED = [
    f"measure.{name}=null"
    for name in ("accuracy", "coverage", "energy", "latency", "memory", "operators", "parity", "size")
]
SWEEP = [*LENET, *QUICK, "method=none,dynamic,static", "batch_size=1,2,3,4,5,6,7,8"]
RUNS = (1250, 2500, 5000)
# What takes the place of each part of qexp.startup to see what it gains.
WITHOUT = {
    "all of qexp.startup": "pass",
    "without collector_at_rest": "startup.collector_at_rest = contextlib.nullcontext",
    "without import_for_good": "startup.import_for_good = lambda name: gc.enable() or importlib.import_module(name)",
    "without end_at_once": "startup.end_at_once = lambda: None",
}
PROGRAM = """
import contextlib, gc, importlib, sys
from qexp import startup
{change}
sys.argv[0] = "compress.py"
import compress
compress.main()
startup.end_at_once()
"""
# If Python may not keep what it compiles, importing the libraries takes twice as long.
SURROUNDINGS = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def seconds(options: list[str], outputs: Path, program: tuple[str, ...] = (str(ROOT / "compress.py"),)) -> float:
    """Run compress.py with these options, and return how many seconds it took."""
    began = time.perf_counter()
    command = [sys.executable, *program, *options, f"outputs={outputs}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=SURROUNDINGS, cwd=ROOT)
    return time.perf_counter() - began


def command_line(outputs: Path) -> None:
    for options in (["--help"], ["--cfg", "job"]):
        taken = [seconds(options, outputs) for _ in range(6)][1:]
        print(
            f"compress.py {' '.join(options)}: {statistics.median(taken):.2f} s (median of {len(taken)}, warm)",
            flush=True,
        )


def again(outputs: Path) -> None:
    first = seconds(SWEEP, outputs)
    print(
        f"a sweep of 24 jobs: {first:.1f} s, started again when finished: {seconds(SWEEP, outputs):.1f} s", flush=True
    )


def starting_and_ending(outputs: Path, rounds: int = 3) -> None:
    """Time a finished sweep without each part of qexp.startup, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in WITHOUT}
    for _ in range(rounds):
        for name, change in WITHOUT.items():
            taken[name].append(seconds(SWEEP, outputs, ("-c", PROGRAM.format(change=change))))
    for name, times in taken.items():
        print(f"a finished sweep of 24 jobs, {name}: {statistics.median(times):.1f} s (median of {rounds})", flush=True)


def per_job(outputs: Path) -> None:
    """Time a further job without making and measuring: the artifacts are there, and nothing is measured."""
    sweep = [*LENET, *UNMEASURED, "method=none,static", "force=true"]
    counts = (4, 44)
    many = ["batch_size=" + ",".join(map(str, range(1, count // 2 + 1))) for count in counts]
    seconds([*sweep, many[-1]], outputs)
    few, most = (min(seconds([*sweep, batches], outputs) for _ in range(2)) for batches in many)
    print(
        f"each further job: {(most - few) / (counts[1] - counts[0]):.2f} s; a sweep of {counts[0]}: {few:.1f} s",
        flush=True,
    )


def tables(outputs: Path) -> None:
    """Time tables of many records, which are those of a real sweep with other batch sizes."""
    known = [
        r for f in sorted((outputs / "sweeps").iterdir()) for r in read_records(f) if r.measurements and not r.reused
    ]
    for count in RUNS:
        folder = outputs / f"table-{count}"
        for i in range(count):
            write_record(numbered(known[i % len(known)], i), folder / str(i))
        began = time.perf_counter()
        records = read_records(folder)
        listed = time.perf_counter()
        markdown, rows = markdown_table(records), csv_table(records)
        print(
            f"{count} runs: listed in {listed - began:.2f} s, tabulated in {time.perf_counter() - listed:.2f} s",
            flush=True,
        )
        assert markdown.count("\n") >= count and rows.count("\n") >= count
        shutil.rmtree(folder)


def numbered(record: Record, number: int) -> Record:
    return replace(record, key=str(number), params={**record.params, "batch_size": number})


def memory(outputs: Path, jobs: int = 200) -> None:
    """Measure the resident memory of the sweeping process after each job, and fit a line through it.

    The line leaves out the first fifth of the jobs, so that both methods have run before it starts.
    """
    batches = "batch_size=" + ",".join(map(str, range(1, jobs // 2 + 1)))
    command = [
        sys.executable,
        str(ROOT / "compress.py"),
        *LENET,
        *UNMEASURED,
        batches,
        "method=none,static",
        "force=true",
    ]
    sweep = subprocess.Popen(
        [*command, f"outputs={outputs / 'memory'}"], stdout=subprocess.PIPE, text=True, env=SURROUNDINGS
    )
    process, seen = psutil.Process(sweep.pid), []
    assert sweep.stdout
    for line in sweep.stdout:
        if line.startswith("  finished in"):
            seen.append(process.memory_info().rss / 1e6)
    assert sweep.wait() == 0 and len(seen) == jobs
    slope = np.polyfit(range(jobs // 5, jobs), seen[jobs // 5 :], 1)[0]
    print(
        f"{jobs} jobs in one process: {seen[0]:.0f} MB after the first, {seen[-1]:.0f} MB after the last, "
        f"{1000 * slope:.0f} kB per job"
    )


def main(options: list[str]) -> None:
    given = dict(option.split("=", 1) for option in options)
    with tempfile.TemporaryDirectory() as temporary:
        outputs = Path(given.get("outputs", temporary))
        for benchmark in (command_line, again, starting_and_ending, per_job, tables, memory):
            benchmark(outputs)
    print(f"\n{machine()}")


if __name__ == "__main__":
    main(sys.argv[1:])
