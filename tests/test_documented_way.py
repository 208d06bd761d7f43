"""The short way of README.md and docs/ is really gone: train, compress, report, search, measure again, load, deploy, and add a method.

Every command is the one that the document has, with the overrides of CHAIN behind it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import qexp.method
from qexp.measure import base
from qexp.tracking.store import read_records
from qexp.types import Record
from tests.commands import PRETEND, QUICK, small, without, write_images
from tests.documents import COMMANDS, DOCUMENTS, FENCE, ROOT, call

# The commands that are run, in this order, and what makes each quick: images of 16 pixels, one epoch, few windows, one engine.
IMAGES = [
    word
    for word in small(Path())
    if word.startswith(("data.image", "data.channels", "data.calib", "recipe.", "trainer="))
]
ONE_ENGINE = without("engine", "inductor", "executorch", "openvino", "torch_ao", "eager")
BRIEF = ["report.formats=[md]", "tracking=none"]  # where another command of the chain shows and logs
FEW = [f"measure.{name}=null" for name in ("memory", "operators", "energy", "parity")]
ROW = "{name: fp32, run: 'method=none', top1: 0.5}"
TABLE = [*PRETEND, "hydra/sweeper=rows", "hydra.sweeper.title=A table", f"hydra.sweeper.rows=[{ROW}]"]
ADDED = "compress.py -m model=lenet5 data=digits method=none,rounded"
CHAIN = {
    r"^train.py model=resnet20 data=folder data.root=pictures$": IMAGES,
    r"^compress.py -m model=resnet20 method=none,dynamic,static data=folder data.root=pictures$": [*IMAGES, *QUICK, *ONE_ENGINE, *FEW],
    r"^-m qexp.report sweep=(latest|all) ": [],
    r"^compress.py experiment=search model=resnet20 ": [*IMAGES, *BRIEF, "threads=1", "hydra.sweeper.trials=1"],
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
PYTHON = {code for file in DOCUMENTS for language, code in FENCE.findall(file.read_text()) if language == "python"}
LOADING = sorted(code for code in PYTHON if "outputs/artifacts/NAME" in code)


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
        patch.setattr(base, "HOST_LOCK", folder / "measure.lock")
        patch.setattr(qexp.method, "__path__", [*qexp.method.__path__, str(folder / "added" / "qexp" / "method")])
        yield


def recorded() -> list[Record]:
    return [record for sweep in sorted(Path("outputs/sweeps").glob("*")) for record in read_records(sweep)]


def compressed() -> str:
    """The artifact that stands for outputs/artifacts/NAME; empty before the sweep."""
    runs = (record for record in recorded() if record.params["method"] == "static")
    return next((os.path.relpath(record.artifact) for record in runs), "")


def run(words: list[str], more: list[str], may_fail: bool = False) -> str:
    """What a documented command prints, with the overrides `more`; it must end well, or have a finished run at least."""
    changed = {"outputs/artifacts/NAME": compressed(), **INSTEAD}
    line = functools.reduce(
        lambda text, each: text.replace(each, changed[each]), changed, "\0".join([*words, *more])
    ).split("\0")
    code, printed = call(line)
    assert not code or may_fail and any(record.status == "finished" for record in recorded()), (
        f"{shlex.join(line)}\n{printed}"
    )
    return printed


@pytest.fixture(scope="module")
def went(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What each command of CHAIN printed, all run one after the other in this folder."""
    with working_folder(tmp_path_factory.mktemp("chain")):
        order = [(text, more) for known, more in CHAIN.items() for text in COMMANDS if re.search(known, text)]
        run(["compress.py", "-m"], [*TABLE, *QUICK, *ONE_ENGINE, *BRIEF, *FEW])
        yield {text: run(COMMANDS[text], more) for text, more in order}


def printed_by(went: dict[str, str], start: str) -> str:
    return "".join(printed for text, printed in went.items() if text.startswith(start))


def rows(kind: str, **params: str) -> list[tuple[Any, ...]]:
    """Method, engine, batch size and status of the records of that kind."""
    found = [record for record in recorded() if record.kind == kind and params.items() <= record.params.items()]
    return [(*(record.params[name] for name in ("method", "engine", "batch_size")), record.status) for record in found]


def test_the_way_from_training_to_a_report_gives_what_it_promises(went: dict[str, str]) -> None:
    assert len(list(Path("outputs/baselines").glob("resnet20-*"))) == 1, "trained once, by train.py"
    swept = rows("compress", model="resnet20", data="pictures")[:3]
    assert swept == [(method, "onnxruntime", 1, "finished") for method in ("none", "dynamic", "static")]
    assert "Compare the runs in a browser: " in printed_by(went, "compress.py -m model=resnet20")
    timed = {("static", engine, batch, "finished") for engine in ("eager", "onnxruntime") for batch in (1, 8, 32)}
    assert {*rows("benchmark")} == timed
    assert {file.name for file in Path("outputs/reports").glob("*/*")} >= {"report.html", "results.md"}
    assert "of 1 trials (1 finished)" in printed_by(went, "compress.py experiment=search")
    assert re.findall(r"^\d+ runs are in tracking", printed_by(went, "-m qexp.tracking sync"), re.M)
    assert re.search(r"\d+ of 40 files right", printed_by(went, "benchmarks/"))
    assert {"model.onnx", "infer.py", "benchmark.py", "README.md"} <= {file.name for file in Path("dist").iterdir()}
    head, _, table = Path("docs/results.md").read_text().partition("\n\n## ")
    assert head == (ROOT / "docs" / "results.md").read_text().partition("\n\n## ")[0]
    assert table.startswith("A table\n") and "| fp32 |" in table


@pytest.mark.parametrize("code", LOADING)
def test_what_is_to_be_written_in_python_runs(code: str, went: dict[str, str]) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code.replace("outputs/artifacts/NAME", compressed()), {})
    assert "dark" in printed.getvalue() or "light" in printed.getvalue()


def test_no_block_of_python_is_left_out() -> None:
    shown = {text.strip() for _, text in SHOWN}
    elsewhere = {code for code in PYTHON if 'qexp.load("runs:/RUN_ID/artifact")' in code}
    assert {*LOADING} | (PYTHON & shown) | elsewhere == PYTHON and len(LOADING) == 2
    assert 'qexp.load("models:/animals/1")' in (ROOT / "tests" / "test_serving.py").read_text(), "as that block does"


def test_the_method_to_add_works_as_it_is_printed(went: dict[str, str]) -> None:
    assert [name for name, _ in SHOWN] == ["qexp/method/rounded.py", "conf/method/rounded.yaml"]
    assert rows("compress", model="lenet5") == [
        (method, "onnxruntime", 1, "finished") for method in ("none", "rounded")
    ]
    assert "weights in bf16" in printed_by(went, ADDED)
