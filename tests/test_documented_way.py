"""The short way of README.md and docs/ is really gone.

It trains, compresses, reports, searches, measures again, loads, deploys, and adds a method.

Every command is the one that the document has, with the overrides of CHAIN behind it.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chain import ADDED, BRIEF, CHAIN, FEW, ONE_ENGINE, SHOWN, TABLE, compressed, recorded, run, working_folder
from tests.commands import QUICK
from tests.documents import COMMANDS, DOCUMENTS, FENCE, ROOT

pytestmark = [pytest.mark.integration, pytest.mark.thorough]

PYTHON = {code for file in DOCUMENTS for language, code in FENCE.findall(file.read_text()) if language == "python"}
# All but the file that a reader is to write, what needs MLflow's server (tests/test_serving.py loads from one), and
# what takes a network of the reader's (tests/api/test_programs.py gives it one).
ELSEWHERE = ('"runs:/', "qexp.compress", "qexp.within")
LOADING = sorted(
    code
    for code in PYTHON
    if code.strip() not in {text.strip() for _, text in SHOWN} and not any(word in code for word in ELSEWHERE)
)


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


def test_the_method_to_add_works_as_it_is_printed(went: dict[str, str]) -> None:
    assert [name for name, _ in SHOWN] == ["qexp/method/rounded.py", "conf/method/rounded.yaml"]
    assert rows("compress", model="lenet5") == [
        (method, "onnxruntime", 1, "finished") for method in ("none", "rounded")
    ]
    assert "weights in bf16" in printed_by(went, ADDED)
