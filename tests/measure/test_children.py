"""Whatever happens in a measuring child, its parent learns what it was and goes on; nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from qexp import nursery
from qexp.engine.base import Engine
from qexp.launch import Child, ChildFailed
from qexp.measure.base import Context
from qexp.measure.candidate import Candidate
from qexp.measure.memory import Memory
from qexp.measure.operators import Operators
from tests.measure.conftest import measuring_children
from tests.measure.fake_engines import Chatters, Fails, Fake, Holds, SlowStart, Tells

pytestmark = pytest.mark.integration

MakeCandidate = Callable[..., Candidate]
MakeContext = Callable[..., Context]


@pytest.mark.parametrize(
    ("how", "limits", "reason"),
    [
        ("segfault", {}, "crashed with SIGSEGV"),
        ("hang", {"timeout_s": 8}, r"hung: no answer to 'start' within 8 s \(measure.timeout_s\)"),
        ("eat", {"memory_mb": 500}, r"out of memory: it held \d+ MB, more than 500 MB \(measure.memory_mb\)"),
        ("refuse", {}, "out of memory: an allocation was refused"),
        ("error", {}, "ValueError: the tensor is of the wrong colour"),
        ("leave", {}, "ended with exit code 3: no licence found"),
    ],
)
def test_every_end_has_its_reason_and_the_parent_goes_on(
    how: str, limits: dict[str, float], reason: str, make_candidate: MakeCandidate
) -> None:
    candidate = make_candidate(Fails(how), **limits)
    with pytest.raises(ChildFailed, match=reason):
        candidate.start()
    candidate.close()
    assert not measuring_children()
    assert make_candidate(Fake()).window(3, 0)


def test_an_end_while_the_engine_imports_has_its_reason_too(make_candidate: MakeCandidate) -> None:
    with pytest.raises(ChildFailed, match="ended with exit code 3: no licence found"):
        make_candidate(Fails("leave", importing=True)).start()


def test_a_closed_candidate_answers_from_a_new_child(make_candidate: MakeCandidate) -> None:
    candidate = make_candidate(Fake())
    first = candidate.ready_child().process.pid
    candidate.close()
    assert len(candidate.window(3, 0)) >= 3
    assert measuring_children() == {candidate.ready_child().process.pid} != {first}


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    """Even if the parent was killed while the child was busy, in which it would have stayed."""
    ids = tmp_path / "ids"
    code = f"""
from pathlib import Path
from qexp.measure.children import Limits, new_child
from tests.measure.fake_engines import Fails
child = new_child(Fails("hang", importing=True), 1, Limits(600, None))
Path({str(ids)!r}).write_text(str(child.process.pid))
child.ask("ready")
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2]) as parent:
        while not ids.exists() or not ids.read_text():
            assert parent.poll() is None
            time.sleep(0.05)
        child = psutil.Process(int(ids.read_text()))
        while child.num_threads() < 2:  # until it listens
            time.sleep(0.05)
        parent.kill()
    _, alive = psutil.wait_procs([child], timeout=60)
    assert not alive


def test_where_pages_cannot_be_mapped_again_nothing_is_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that the engine's import takes would count as the network's."""
    assert nursery._to_map_again()
    monkeypatch.setattr(nursery, "POPULATE_READ", 999)  # as unknown here as the real one is to Linux before 5.14
    assert nursery._to_map_again() is None


def test_memory_below_the_limit_is_no_reason(make_candidate: MakeCandidate) -> None:
    assert make_candidate(Holds(held=100), memory_mb=500).start()["memory_mb"] > 90


def test_a_child_that_died_between_two_questions(make_candidate: MakeCandidate) -> None:
    candidate = make_candidate(Fake())
    candidate.start()
    candidate.ready_child().process.kill()
    candidate.ready_child().process.wait()
    with pytest.raises(ChildFailed, match="killed by SIGKILL"):
        candidate.window(1, 0)
    candidate.close()  # the question that nobody read is in the pipe
    candidate.close()


def test_an_engine_may_print(make_candidate: MakeCandidate) -> None:
    candidate = make_candidate(Chatters())
    assert candidate.start()["load_ms"] >= 0
    assert len(candidate.window(3, 0)) == 3


def test_nothing_is_left_of_a_child(make_candidate: MakeCandidate) -> None:
    descriptors = psutil.Process().num_fds()
    candidate = make_candidate(Tells())
    candidate.start()
    helper = json.loads(candidate.ready_child().ask("operators")["profile"]["text"])["helper"]
    assert psutil.pid_exists(helper)
    candidate.close()
    assert psutil.Process().num_fds() == descriptors
    assert not measuring_children()
    wait_until(lambda: not psutil.pid_exists(helper) or psutil.Process(helper).status() == psutil.STATUS_ZOMBIE)


def wait_until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_child_imports_its_engine_and_nothing_else_and_gets_its_options(make_candidate: MakeCandidate) -> None:
    candidate = make_candidate(Tells([1, 2], flag=True))
    candidate.start()
    told = json.loads(candidate.ready_child().ask("operators")["profile"]["text"])
    os.kill(told["helper"], 9)
    heavy = {
        "torch",
        "torchvision",
        "torchao",
        "mlflow",
        "hydra",
        "omegaconf",
        "onnxruntime",
        "psutil",
        "filelock",
        "pandas",
    }
    assert not heavy & set(told["modules"]) and "numpy" in told["modules"]
    assert told["options"] == [[1, 2], True]
    assert told["shape"] == [2, 3, 8, 8]


def test_load_and_first_call_are_told_apart(make_candidate: MakeCandidate) -> None:
    candidate = make_candidate(SlowStart(load_ms=150, first_ms=300))
    started = candidate.start()
    assert (started["load_ms"], started["first_call_ms"]) == (150, 300)
    assert candidate.window(11, 0) == [1] * 11


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        (Holds(held=100), 100),
        (Holds(spike=100), 100),
        (Holds(held=60, spike=100), 100),
        (Holds(held=40, imports=200), 40),
        (Fake(), 0),
    ],
    ids=["held", "spike", "held after a spike", "imported", "nothing"],
)
def test_memory_is_the_peak_above_the_imported_engine(
    engine: Engine, expected: float, make_context: MakeContext
) -> None:
    (memory,) = Memory().measure(make_context(engine))
    assert (memory.name, memory.unit) == ("memory_mb", "MB")
    assert memory.value == pytest.approx(expected, rel=0.05, abs=1)


def test_the_peak_of_an_accelerator_is_told_beside_it(make_context: MakeContext) -> None:
    found = Memory().measure(make_context(Holds(device=321.5)))
    assert [(m.name, m.unit) for m in found] == [("memory_mb", "MB"), ("device_memory_mb", "MB")]
    assert found[1].value == 321.5


def test_without_a_high_water_mark_a_note_says_so(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_context(Fake())
    elsewhere = {"memory_mb": None, "device_memory_mb": None}  # than on Linux
    monkeypatch.setattr(context.candidate, "start", lambda: elsewhere)
    assert Memory().measure(context) == [] and "no resettable high-water mark" in context.notes["memory_mb"]


def test_operators_are_a_table_where_the_engine_has_a_profiler(make_context: MakeContext) -> None:
    context = make_context(Tells())
    (allocated,) = Operators().measure(context)
    assert (allocated.name, allocated.value, allocated.unit) == ("allocated_mib", 2.5, "MiB")
    assert "modules" in context.texts["operators.txt"]
    assert json.loads(context.texts["operators.json"]) == [{"name": "relu", "calls": 2}]
    os.kill(json.loads(context.texts["operators.txt"])["helper"], 9)


def test_an_engine_without_a_profiler_has_a_note_instead(make_context: MakeContext) -> None:
    context = make_context(Fake())
    assert Operators().measure(context) == [] and context.texts == {}
    assert context.notes == {"allocated_mib": "fake has no profiler of operators"}


SLOW = """
import json, sys, time
for line in sys.stdin:
    for done in range(4):
        time.sleep(0.9)
        print(json.dumps({"done": done, "total": 4}), flush=True)
    print(json.dumps({"answer": json.loads(line)["number"]}), flush=True)
"""


def test_a_child_that_says_how_far_it_is_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_child.py").write_text(SLOW)
    monkeypatch.chdir(tmp_path)
    told: list[tuple[int, int]] = []
    with Child("slow_child", None, 1, timeout_s=3, memory_mb=None) as child:  # all of its answer takes 3.6 s
        answer = child.ask("work", lambda done, total: told.append((done, total)), number=7)
    assert answer == {"answer": 7} and told == [(done, 4) for done in range(4)]


def test_a_child_finds_the_modules_that_its_parent_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "of_the_users_own.py").write_text(
        "import sys\nfor line in sys.stdin:\n    print('{\"answer\": 7}', flush=True)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with Child("of_the_users_own", {}, 1, 60, None) as child:
        assert child.ask("anything") == {"answer": 7}
