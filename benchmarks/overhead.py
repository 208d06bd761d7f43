r"""Measures what a run costs besides its timed windows and its passes over images.

    uv run python benchmarks/overhead.py -m model=resnet34 method=none,static engine=onnxruntime data=folder \
        data.root=FOLDER

What remains is starting children, loading, records and tracking. The options are those of compress.py, which are run
twice, so that the second time all artifacts and logits are there.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from common import ROOT

from qexp.cli import program
from qexp.jobs import compress
from qexp.jobs.run import run_job
from qexp.launch import Child

COUNTED = {"window": "windows", "predict": "passes over images"}


def main() -> None:
    spent: defaultdict[str, float] = defaultdict(float)
    ask = Child.ask

    def timed_ask(self: Child, command: str, **arguments: Any) -> dict[str, Any]:
        began = time.perf_counter()
        try:
            return ask(self, command, **arguments)
        finally:
            spent[COUNTED.get(command, f"waiting for {command!r}")] += time.perf_counter() - began

    def timed_job(*arguments: Any) -> None:
        spent.clear()
        began = time.perf_counter()
        run_job(*arguments)
        total = time.perf_counter() - began
        overhead = total - spent["windows"] - spent["passes over images"]
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in sorted(spent.items()))
        print(f"  overhead {overhead:.1f} s of {total:.1f} s ({parts})", flush=True)

    Child.ask, compress.run_job = timed_ask, timed_job  # type: ignore[method-assign, assignment]
    program("compress")()


if __name__ == "__main__":
    subprocess.run(
        [sys.executable, str(ROOT / "compress.py"), *sys.argv[1:]],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=Path.cwd(),
    )
    sys.argv.append("force=true")  # otherwise the first runs would be reused
    main()
