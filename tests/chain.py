"""The chain of documented commands that tests run one after the other.

It says what makes each of them quick, and prepares the folder that they run in.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import qexp.method
from qexp.measure import host_lock
from qexp.records import Record
from qexp.tracking.store import read_records
from tests.commands import PRETEND, QUICK, small, without, write_images
from tests.documents import ROOT, call

# The commands that are run, in this order, and what makes each quick: images of 16 pixels, one epoch, few windows, and
# one engine.
IMAGES = [
    word
    for word in small(Path())
    if word.startswith(("data.image", "data.channels", "data.calib", "recipe.", "trainer="))
]
ONE_ENGINE = without("engine", "inductor", "executorch", "openvino", "litert", "ncnn", "torch_ao", "eager")
SHALLOW = ["model.blocks=[1,1,1]"]  # resnet20 with a third of its layers
BRIEF = ["report.formats=[md]", "tracking=none"]  # where another command of the chain shows and logs
FEW = [f"measure.{name}=null" for name in ("memory", "operators", "energy", "parity")]
ROW = "{name: fp32, run: 'method=none', top1: 0.5}"
TABLE = [*PRETEND, "hydra/sweeper=rows", "hydra.sweeper.title=A table", f"hydra.sweeper.rows=[{ROW}]"]
ADDED = "compress.py -m model=lenet5 data=digits method=none,rounded"
CHAIN = {
    r"^train.py model=resnet20 data=folder data.root=pictures$": [*IMAGES, *SHALLOW],
    r"^compress.py -m model=resnet20 method=none,dynamic,static data=folder data.root=pictures$": [
        *IMAGES, *SHALLOW, *QUICK, *ONE_ENGINE, *FEW,
    ],
    r"^-m qexp.report sweep=(latest|all) ": [],
    r"^compress.py experiment=search model=resnet20 ": [
        *IMAGES, *SHALLOW, *BRIEF, "threads=1", "hydra.sweeper.trials=1",
    ],
    r"^benchmark.py (-m )?artifact=": [*QUICK, *BRIEF, *FEW, "measure.accuracy=null"],
    r"^-m qexp.tracking sync": [],
    r"^-m qexp.deploy ": [],
    r"^benchmarks/predictions.py ": [],
    r"^-m qexp.report.results$": [],
    f"^{ADDED}$": [
        "hydra.searchpath=[file://added/conf]", "recipe.epochs=1", "trainer=cpu", *QUICK, *ONE_ENGINE, *BRIEF, *FEW,
    ],
}  # fmt: skip
# Where the pretend network and its images are not what the example speaks of.
INSTEAD = {
    "model=resnet34 and top1>0.85": "model=resnet20 and top1>0.1", "where=model=resnet8": "where=model=resnet20",
    "data/cifar10-jpeg": "pictures",
}  # fmt: skip
SHOWN = re.findall(r"`(\S+)`:\n\n```\w+\n(.*?\n)```$", (ROOT / "README.md").read_text(), re.M | re.S)  # files by path


@contextlib.contextmanager
def working_folder(folder: Path) -> Iterator[None]:
    """A reader's folder with `pictures`, a photo and the files of "Add a method" in it, where no time is checked."""
    write_images(folder / "pictures")
    (folder / "docs").mkdir()
    Image.open(next((folder / "pictures" / "test").rglob("*.png"))).save(folder / "photo.jpg")
    for name, text in SHOWN:
        (folder / "added" / name).parent.mkdir(parents=True)
        (folder / "added" / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        patch.setattr(host_lock, "HOST_LOCK", folder / "measure.lock")
        patch.setattr(qexp.method, "__path__", [*qexp.method.__path__, str(folder / "added" / "qexp" / "method")])
        yield


def recorded() -> list[Record]:
    return [record for sweep in sorted(Path("outputs/sweeps").glob("*")) for record in read_records(sweep)]


def compressed() -> str:
    """The artifact that stands for outputs/artifacts/NAME; empty before the sweep."""
    runs = (record for record in recorded() if record.params["method"] == "static")
    return next((os.path.relpath(record.artifact) for record in runs), "")


def run(words: list[str], more: list[str], may_fail: bool = False) -> str:
    """Run a documented command and return what it prints.

    Args:
        words: The words of the command.
        more: Overrides that are put behind it.
        may_fail: Whether one finished run is enough. Otherwise the command has to end well.
    """
    changed = {"outputs/artifacts/NAME": compressed(), **INSTEAD}
    line = functools.reduce(
        lambda text, each: text.replace(each, changed[each]), changed, "\0".join([*words, *more])
    ).split("\0")
    code, printed = call(line)
    assert not code or may_fail and any(record.status == "finished" for record in recorded()), (
        f"{shlex.join(line)}\n{printed}"
    )
    return printed
