"""Times the network on this machine: `python benchmark.py [threads=N] [batch_size=N] [to=record.json]`

Nothing else should run meanwhile. Loading, the first call and the steady state are timed separately, by the rules of
qexp: a warm-up until two windows agree, then windows of calls. The result is the median of the windows with a 95 %
interval, percentiles and the spread. Windows in which other processes used the cores are taken again, unless the
variable QEXP_WATCH is false. `qexp import record.json` adds it to other results.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def measure(threads: int, batch: int) -> dict[str, Any]:
    """Time the network on this machine, and give the record."""
    import infer
    import numpy as np
    import timing
    from disturbance import Watch
    from machine import environment, physical_cores

    about, file = infer.ABOUT, infer.HERE / infer.ABOUT["file"]
    for module in about["modules"]:  # importing is not a cost of the network
        importlib.import_module(module)
    x = np.random.default_rng(0).standard_normal((batch, infer.HOW.channels, *infer.HOW.size), dtype=np.float32)
    forward, started = timing.start(lambda: infer.network(threads), x)
    rules = timing.Rules(**about["rules"])
    watched = os.environ.get("QEXP_WATCH", "true") != "false"
    watch = Watch(lambda: [os.getpid()], threads, physical_cores()) if watched else None
    taken = rules.take_turns([lambda calls, seconds: timing.window(forward, x, calls, seconds)], watch)
    (windows,), kind = taken.windows, "measured" if taken.trusted else "disturbed"
    units = {"memory_mb": "MB"}
    figures = {name: (value, units.get(name, "ms")) for name, value in started.items() if value is not None}
    samples = {"latency_ms": [sample for window in windows for sample in window]}
    deployment = {
        "artifact": about["artifact"],
        "file": about["file"],
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    machine = environment(None)
    identity = [deployment, about["engine"], machine["host"], machine["versions"], threads, batch, about["rules"]]
    return {
        "kind": "benchmark", "key": hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
        "sweep": machine["host"], "status": "finished", "reason": "",
        "label": f"{about['params']['model']} · {about['params']['label']} · {about['engine']}",
        "params": {**about["params"], "engine": about["engine"], "batch_size": batch, "threads": threads, "seed": 0},
        "config": {"deployment": deployment, "latency": about["rules"]},
        "measurements": [
            {"name": name, "value": value, "unit": unit, "kind": kind, "samples": samples.get(name, [])}
            for name, (value, unit) in {**rules.describe(windows, batch), **figures}.items()
        ],
        "environment": {**machine, "commit": about["commit"]}, "command": " ".join(["python", *sys.argv]),
        "created": datetime.now(UTC).isoformat(timespec="seconds"), "artifact": about["artifact"], "texts": {},
        "notes": {"top1": "not measured on this machine", "speedup": "no fp32 network was timed on this machine"},
        "reused": "",
    }  # fmt: skip


def main() -> int:
    about = json.loads((Path(__file__).parent / "deployment.json").read_text())
    given = {"threads": about["threads"], "batch_size": about["batch"], "to": "record.json"}
    words = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    if len(words) < len(sys.argv) - 1 or not {*words} <= {*given}:
        print(__doc__, file=sys.stderr)
        return 2
    given |= words
    threads = str(given["threads"])
    os.environ.update(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)  # before a library reads them
    record = measure(int(threads), int(given["batch_size"]))
    Path(given["to"]).write_text(json.dumps(record, indent=2))
    values = {m["name"]: m["value"] for m in record["measurements"]}
    disturbed = any(m["kind"] == "disturbed" for m in record["measurements"])
    noisy = (
        " (disturbed: other processes used the cores; run it again when they are quiet)"
        if disturbed
        else (
            " (noisy: the middle half of the calls spans more than 10 % of the median)"
            if values["latency_spread"] > 0.1
            else ""
        )
    )
    interval = (
        f", 95 % interval {values['latency_low_ms']:.4g} to {values['latency_high_ms']:.4g}"
        if "latency_low_ms" in values
        else ""
    )
    print(
        f"{record['environment']['host']}: {values['latency_ms']:.4g} ms per call{interval}, "
        f"p99 {values['latency_p99_ms']:.4g}{noisy}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
