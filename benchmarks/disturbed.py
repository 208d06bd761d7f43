"""Checks that times taken beside busy processes are right or flagged.

    uv run python benchmarks/disturbed.py [engines=onnxruntime,openvino,eager] [compress.py's options ...]

fp32 on each engine is measured as in every run, with one thread and with two: first on the quiet machine, then beside
one and beside two processes that compute without end. Each latency and speed-up beside them should be within 10 % of
the quiet one, or flagged as disturbed.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from common import composed, machine
from hydra.utils import instantiate

from qexp.engine.base import Engine
from qexp.jobs.artifact_factory import ArtifactFactory, prepare
from qexp.measure.base import Context, run_measures
from qexp.metrics import METRICS
from qexp.types import Unsupported

OPTIONS = ("model=resnet20", "data=random", "data.image_size=32", "checkpoint=random", "method=none")
SHOWN = ("latency_ms", "speedup")
FAR = 0.1  # share by which a figure may differ from the quiet one


def measured(factory: ArtifactFactory, engine: Engine, busy: int) -> tuple[dict[str, float], bool]:
    """What a run records beside `busy` processes, and whether it is flagged."""
    config = factory.config
    method, baseline = instantiate(config.method), instantiate(config.baseline.engine)
    candidates = factory.candidate(method, engine), factory.candidate(method, baseline)
    context = Context(*candidates, None, Path(config.outputs) / "cache")
    with ExitStack() as running:
        for _ in range(busy):
            process = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
            running.callback(process.wait)
            running.callback(process.kill)
        found = run_measures({"latency": instantiate(config.measure.latency)}, context)
    return {m.name: m.value for m in found}, any(m.kind == "disturbed" for m in found)


def main(words: list[str]) -> None:
    given = dict(word.split("=", 1) for word in words)
    engines = given.pop("engines", "onnxruntime,openvino,eager").split(",")
    options = [*OPTIONS, *(f"{name}={value}" for name, value in given.items())]
    off = 0
    for threads in (1, 2):
        factory = prepare(composed([*options, f"threads={threads}"]))
        for name in engines:
            engine = instantiate(composed([*options, f"engine={name}"]).engine)
            try:
                quiet, flagged = measured(factory, engine, 0)
            except Unsupported as reason:
                print(f"{name}: {reason}")
                continue
            print(f"{name}, {threads} threads, quiet: {shown(quiet, quiet)}{' disturbed' * flagged}", flush=True)
            for busy in (1, 2):
                found, flagged = measured(factory, engine, busy)
                far = any(abs(found[n] / quiet[n] - 1) > FAR for n in SHOWN if n in quiet)
                off += far and not flagged
                said = "disturbed" if flagged else "FAR OFF, and not flagged" if far else "within 10 %"
                print(f"{name}, {threads} threads, beside {busy}: {shown(found, quiet)} {said}", flush=True)
    print(f"\n{off} figures were far off and not flagged\n{machine()}")


def shown(found: dict[str, float], quiet: dict[str, float]) -> str:
    return ", ".join(
        f"{METRICS[n].text(found[n])} {METRICS[n].unit_shown} ({found[n] / quiet[n]:.2f} of quiet)"
        for n in SHOWN if n in found
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
