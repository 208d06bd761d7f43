"""Compares what a search within limits finds with the best row of an exhaustive sweep over the same space.

    uv run python benchmarks/within.py resnet20 FOLDER [outputs=FOLDER] [limits=0,1,2] [epochs=1,4,16] \
        [engines=onnxruntime,openvino] [OPTION ...]

NETWORK is resnet20, vgg19 (FOLDER is cifar10-jpeg), or lite0 (FOLDER is imagenette-224); train.py has to have made a
baseline of the last two. Each of three sets of limits is searched for. The sweep is run once, and everything is timed
on one machine, which should have nothing else to do: a whole sweep takes hours. OPTIONs go to compress.py.
"""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import ROOT, machine

from qexp.records import Record
from qexp.report.terms import equal_terms
from qexp.tracking.store import read_records
from qexp.within_limits.answer import Answer, verdict
from qexp.within_limits.limits import Limits
from qexp.within_limits.training import RATIOS

NETWORKS = {
    "resnet20": ["model=resnet20"], "vgg19": ["model=vgg19"],
    "lite0": ["model=timm", "model.name=tf_efficientnet_lite0", "data.image_size=224"],
}  # fmt: skip
# Three sets of limits each: what an application could ask for, with room, at the edge, and beyond int8 alone.
ASKED: dict[str, list[dict[str, Any]]] = {
    "resnet20": [
        {"drop": 0.5, "minimise": "latency_ms"}, {"drop": 1, "size_mb": 0.25, "minimise": "latency_ms"},
        {"drop": 2, "minimise": "size_mb"},
    ],
    "vgg19": [
        {"drop": 0.5, "minimise": "latency_ms"}, {"drop": 1, "size_mb": 15, "minimise": "latency_ms"},
        {"drop": 2, "minimise": "size_mb"},
    ],
    "lite0": [
        {"drop": 0.5, "minimise": "latency_ms"}, {"drop": 1, "size_mb": 4, "minimise": "latency_ms"},
        {"drop": 2, "minimise": "size_mb"},
    ],
}  # fmt: skip
ENGINES = ("onnxruntime", "openvino", "inductor", "executorch", "torch_ao")
STAGE = "method.stages.prune_channels"


@dataclass(frozen=True)
class Found:
    """What a search or a sweep found.

    Attributes:
        record: Its record on the test images, or None if nothing holds.
        minutes: How long all of it took.
    """

    record: Record | None
    minutes: float


def rows(points: set[float], epochs: list[int], engines: list[str]) -> list[str]:
    """The overrides of every job of the sweep: the space that the search goes through, with all combinations.

    Args:
        points: The drops that are accepted in any of the limits.
        epochs: Numbers of epochs that are trained.
        engines: The engines.
    """
    ways = ["method=none bits=32", "method=half bits=16", "method=static bits=8", "method=reconstruct bits=8"]
    ways += [f"method=static bits=8 method.accept_points={accepted:g}" for accepted in sorted(points)]
    ways += [f"method=qat bits=8 method.recipe.epochs={count}" for count in epochs]
    for ratio, count, target in itertools.product(RATIOS, epochs, ("macs", "parameters")):
        given = f"{STAGE}.target={target} {STAGE}.ratio={ratio:g} {STAGE}.recipe.epochs={count}"
        ways.append(f"method=prune_channels_static bits=8 {given}")
    return [f"{way} engine={engine}" for way, engine in itertools.product(ways, engines)]


def command(words: list[str]) -> None:
    print("python compress.py", *words, flush=True)
    subprocess.run([sys.executable, str(ROOT / "compress.py"), *words], check=False)


def newest(outputs: Path) -> Path:
    """The folder of the sweep that ended last. The program ends if there is none."""
    folders = sorted((outputs / "sweeps").glob("*"))
    if not folders:
        sys.exit("error: that command made no sweep; it says why.")
    return folders[-1]


def swept(options: list[str], outputs: Path, ways: list[str]) -> list[Record]:
    listed = ",".join(f"{{name:row{number},run:'{way}'}}" for number, way in enumerate(ways))
    command([
        "-m", "hydra/sweeper=rows", f"hydra.sweeper.rows=[{listed}]", *options, f"outputs={outputs}",
        "measure.accuracy.part=both", "engine@fp32_engines=eager", "measure.energy=null", "measure.operators=null",
        "heat.rows=0",
    ])  # fmt: skip
    return read_records(newest(outputs))


def searched(options: list[str], outputs: Path, asked: dict[str, Any], engines: list[str]) -> Found:
    given = [f"limits.{name}={value}" for name, value in asked.items() if name != "minimise"]
    given.append(f"limits.engines=[{','.join(engines)}]")
    command(["experiment=within", *options, *given, f"minimise={asked['minimise']}", f"outputs={outputs}"])
    sweep = newest(outputs)
    answer, records = Answer.read(sweep), read_records(sweep)
    final = next((record for record in records if "top1" in record.metrics), None)
    return Found(final, sum(row.seconds for row in answer.rows) / 60 if answer else math.nan)


def best_of(records: list[Record], limits: Limits) -> Found:
    """The best row of the sweep, chosen on validation images as the search does."""
    finished = [record for record in records if record.status == "finished"]
    terms = equal_terms(finished)
    held = [
        (limits.score(metrics), number) for number, metrics in enumerate(terms)
        if limits.hold(limits.judge(finished[number].metrics))
    ]  # fmt: skip
    best = finished[min(held)[1]] if held else None
    return Found(best, sum(record.seconds for record in records) / 60)


def limits_of(asked: dict[str, Any]) -> Limits:
    values = {"drop": None, "latency_ms": None, "size_mb": None, "memory_mb": None, "macs_m": None, **asked}
    methods = ("none", "half", "static", "reconstruct", "qat", "prune_channels")
    return Limits(
        **{**values, "minimise": [asked["minimise"]]}, bits=(32, 16, 8), engines=None, methods=methods, training=True,
        minutes=1, sure=False,
    )  # fmt: skip


def line(name: str, asked: dict[str, Any], found: Found, best: Found) -> str:
    """A row of the table: what was asked for, what both found, and whether the found one holds on the test images."""
    limits = limits_of(asked)
    said = ", ".join(f"{key} ≤ {value:g}" for key, value in asked.items() if key != "minimise")
    cells = [name, f"{said}; least {asked['minimise']}"]
    if found.record and best.record:
        both = equal_terms([found.record, best.record])
        worse = math.exp(limits.score(both[0]) - limits.score(both[1])) - 1
        on_test = verdict(limits.judge({**found.record.metrics, **_as_validation(found.record)}))
        cells += [found.record.label, on_test, best.record.label, f"{100 * worse:+.1f} %"]
    else:
        cells += [each.record.label if each.record else "nothing holds" for each in (found, best)]
        cells[3:3] = ["–"]
        cells.append("–")
    cells += [f"{found.minutes:.0f} of {best.minutes:.0f}", f"{found.minutes / best.minutes:.0%}"]
    return f"| {' | '.join(cells)} |"


def _as_validation(record: Record) -> dict[str, float]:
    """What the test images show, under the names by which limits judge."""
    names = ("top1", "top1_drop", "top1_drop_low", "top1_drop_high")
    return {f"val_{name}": record.metrics[name] for name in names if name in record.metrics}


def main() -> None:
    name, folder, *words = sys.argv[1:]
    own = dict(word.split("=", 1) for word in words if word.startswith(("outputs=", "limits=", "epochs=", "engines=")))
    options = [*NETWORKS[name], "data=folder", f"data.root={folder}"]
    options += [word for word in words if word.partition("=")[0] not in own]
    outputs = Path(own.get("outputs", "outputs/within_benchmark"))
    chosen = [ASKED[name][int(number)] for number in own.get("limits", "0,1,2").split(",")]
    engines = own.get("engines", ",".join(ENGINES)).split(",")
    epochs = [int(count) for count in own.get("epochs", "1,4,16").split(",")]
    # The search goes first and into a folder of its own, so that it finds nothing of the sweep.
    found = [searched(options, outputs / f"search{number}", asked, engines) for number, asked in enumerate(chosen)]
    records = swept(options, outputs / "sweep", rows({asked["drop"] for asked in chosen}, epochs, engines))
    print(f"\n{machine()}\n")
    print("| network | limits | found | on test images | best of the sweep | worse by | minutes | share |")
    print("|---|---|---|---|---|---|---|---|")
    for asked, each in zip(chosen, found, strict=True):
        print(line(name, asked, each, best_of(records, limits_of(asked))))


if __name__ == "__main__":
    main()
