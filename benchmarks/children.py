r"""Compares measuring children that import their engine with those that are forked from a process that has imported it.

    uv run python benchmarks/children.py model=torchvision model.name=mobilenet_v2 data=random data.image_size=96 \
        checkpoint=random method=none [engines=eager,executorch,onnxruntime] [repeats=3]

Both load the same artifact in turns. The other options are those of compress.py. Printed are the seconds until a child
is ready, the memory of the network in MB, and the median ms of a call, each with its smallest and largest value.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict

from common import composed, machine
from hydra.utils import instantiate

from qexp.jobs.artifact_factory import ArtifactFactory, prepare
from qexp.launch import Child
from qexp.measure import children
from qexp.measure.candidate import Candidate
from qexp.measure.host_lock import alone_on_host
from qexp.types import Unsupported

OWN = {"engines": "eager,executorch,onnxruntime", "repeats": "3"}
CALLS, SECONDS = 30, 0.5  # of the window that is timed, at least


class Importing(Candidate):
    """A candidate whose child imports its engine itself."""

    def launch(self) -> Child:
        if self._child is None:
            self._child = children.new_child(self.engine, self.threads, self.limits)
        return self._child


def figures(factory: ArtifactFactory, name: str, options: list[str], kind: type[Candidate]) -> tuple[float, ...]:
    """Seconds until a child is ready, its network's memory in MB, and the median ms of a call."""
    engine = instantiate(composed([*options, f"engine={name}"]).engine)
    made = factory.candidate(instantiate(factory.config.method), engine)
    candidate = kind(made.artifact, engine, made.batch, made.threads, made.limits)
    began = time.perf_counter()
    try:
        candidate.ready_child()
        ready = time.perf_counter() - began
        return ready, candidate.start()["memory_mb"], statistics.median(candidate.window(CALLS, SECONDS))
    finally:
        candidate.close()


def main(words: list[str]) -> None:
    own = OWN | dict(word.split("=", 1) for word in words if word.startswith(("engines=", "repeats=")))
    options = [word for word in words if not word.startswith(("engines=", "repeats="))]
    factory = prepare(composed(options))
    with alone_on_host():
        for name in own["engines"].split(","):
            found: dict[type[Candidate], list[tuple[float, ...]]] = defaultdict(list)
            try:
                figures(factory, name, options, Candidate)  # starts the process that is forked
                for _ in range(int(own["repeats"])):
                    for kind in (Importing, Candidate):
                        found[kind].append(figures(factory, name, options, kind))
            except Unsupported as reason:
                print(f"{name}: {reason}", flush=True)
            for kind, values in found.items():
                spans = [f"{min(column):.3g} to {max(column):.3g}" for column in zip(*values, strict=True)]
                how = "imports" if kind is Importing else "forked "
                print(f"{name} {how}: ready after {spans[0]} s, {spans[1]} MB, {spans[2]} ms", flush=True)
    children.NURSERIES.stop()
    print(f"\n{machine()}")


if __name__ == "__main__":
    main(sys.argv[1:])
