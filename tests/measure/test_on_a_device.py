"""Candidates on another machine, for which a command in the place of ssh stands that runs everything here."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from qexp.artifact import Artifact
from qexp.device.ssh import Ssh
from qexp.engine.base import Engine
from qexp.jobs.comparison import judge_of
from qexp.launch import ChildFailed, ConnectionLost
from qexp.measure.base import Context, marked_as_emulated, ranking, run_measures
from qexp.measure.candidate import Candidate
from qexp.measure.children import Limits
from qexp.measure.images import EvaluationSet
from qexp.metrics import METRICS
from qexp.types import Unsupported, UserError
from tests import configured
from tests.device.support import answering, device, script
from tests.measure.conftest import is_free
from tests.measure.fake_engines import Fails, Fake, Holds, Missing, Scores, Takes, TakesToo

pytestmark = pytest.mark.integration

MakeArtifact = Callable[..., Artifact]
TestsOf = Callable[[Artifact], EvaluationSet]


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Ssh]:
    made = device(tmp_path)
    yield made
    made.close()
    assert not of_devices(), "nothing is left on the device"


def of_devices() -> list[int]:
    """Ids of the processes that run on devices which are this machine."""
    return [process.pid for process in psutil.Process().children(recursive=True) if ".cache/qexp" in environ(process)]


def environ(process: psutil.Process) -> str:
    try:
        return process.environ().get("PYTHONPATH", "") + " ".join(process.cmdline())
    except psutil.Error:
        return ""


def on(board: Ssh, engine: Engine, artifact: Artifact, **limits: float) -> Candidate:
    within = Limits(**{"timeout_s": 60, "memory_mb": None, **limits})  # type: ignore[arg-type]
    return Candidate(artifact, engine, 2, 1, within, device=board)


def test_a_device_gives_the_logits_of_this_machine(
    board: Ssh, make_artifact: MakeArtifact, make_candidate: Any, tests_of: TestsOf, weights: Any, tmp_path: Path
) -> None:
    artifact = make_artifact(weights=weights[0])
    images, there, here = tests_of(artifact), on(board, Scores(), artifact), make_candidate(Scores(), artifact)
    for count in (None, 7):
        ours, theirs = (each.logits(images, 4, tmp_path / "cache", count)[0] for each in (here, there))
        assert theirs.dtype == np.float32 and np.array_equal(ours, theirs)
    assert there.logits_key(images, 4, 7) != here.logits_key(images, 4, 7)
    labels = [np.load(file) for file in (tmp_path / "home").rglob("test_labels.npy")]
    assert len(labels) == 2 and not any(label.any() for label in labels), "labels stay on this machine"
    there.close()


def test_a_file_is_sent_once_and_nothing_else_of_its_artifact(
    board: Ssh, make_artifact: MakeArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = make_artifact()
    candidate = on(board, Fake(), artifact)
    candidate.start()
    candidate.close()
    sent = [*(tmp_path / "home" / ".cache" / "qexp" / "files").rglob("*.*")]
    assert [(file.name, file.read_bytes()) for file in sent] == [
        ("model.pt2", (artifact.folder / "model.pt2").read_bytes())
    ]
    assert sent[0].parent.name == artifact.files["model.pt2"]
    asked: list[str] = []
    ask = board.keeper.ask
    monkeypatch.setattr(board.keeper, "ask", lambda command, **more: asked.append(command) or ask(command, **more))
    candidate.start()
    candidate.close()
    assert "has" in asked and "put" not in asked and "boot" not in asked


@pytest.mark.parametrize(
    ("how", "limits", "reason"),
    [
        ("segfault", {}, "crashed with SIGSEGV"),
        ("hang", {"timeout_s": 4}, r"hung: no answer to 'start' within 4 s \(measure.timeout_s\)"),
        ("eat", {"memory_mb": 500}, r"out of memory: it held \d+ MB, more than 500 MB \(measure.memory_mb\)"),
        ("refuse", {}, "out of memory: an allocation was refused"),
        ("error", {}, "ValueError: the tensor is of the wrong colour"),
        ("leave", {}, "ended with exit code 3: no licence found"),
    ],
)
def test_every_end_there_has_its_reason(
    how: str, limits: dict[str, float], reason: str, board: Ssh, make_artifact: MakeArtifact
) -> None:
    candidate = on(board, Fails(how), make_artifact(), **limits)
    with pytest.raises(ChildFailed, match=reason):
        candidate.start()
    candidate.close()
    other = on(board, Fake(), make_artifact("other"))
    assert len(other.window(3, 0)) >= 3
    other.close()


def test_memory_is_that_of_the_child_there(board: Ssh, make_artifact: MakeArtifact) -> None:
    candidate = on(board, Holds(held=60, imports=100), make_artifact())
    assert candidate.start()["memory_mb"] == pytest.approx(60, rel=0.05, abs=1)
    candidate.close()


def test_all_that_is_timed_is_timed_there_under_its_lock(board: Ssh, make_artifact: MakeArtifact) -> None:
    with board.alone():
        assert not is_free()
    assert is_free()
    candidates = {name: on(board, made, make_artifact(name)) for name, made in (("a", Takes(3)), ("b", TakesToo(2)))}
    assert ranking(candidates, configured.measure("latency", window_s=0, watch=True), {}) == {"b": 2, "a": 3}
    latency = configured.measure("latency", window_s=0, warmup_s=0, windows=8, watch=False)
    context = Context(candidates["a"], candidates["b"], None, Path())
    found = {m.name: m.value for m in run_measures({"latency": latency}, context)}
    assert found["speedup"] == pytest.approx(2 / 3) and found["latency_ms"] == 3
    assert not of_devices() or of_devices() == [board.keeper.process.pid] or is_free()


def test_a_watch_there_sees_who_uses_the_cores(board: Ssh, make_artifact: MakeArtifact) -> None:
    candidate = on(board, Fake(), make_artifact())
    watch = board.watch(lambda: [candidate.process], threads=board.physical_cores())
    busy = [threading.Event()]
    burners = [psutil.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        time.sleep(0.2)
        watch.begin()
        while (disturbed := watch.disturbed()) is None:
            time.sleep(0.05)
        assert disturbed and watch.reason == "other processes used the cores" and busy
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
        candidate.close()


def test_a_lost_connection_is_tried_again_and_then_told(
    board: Ssh, make_artifact: MakeArtifact, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact, tried = make_artifact(), list[int]()

    def run() -> int:
        tried.append(len(tried))
        candidate = on(board, Fake(), artifact)
        candidate.start()
        if len(tried) <= losses:
            end_ssh(candidate)
        windows = candidate.window(3, 0)
        candidate.close()
        return len(windows)

    losses = 1
    assert board.steadily(run) >= 3 and tried == [0, 1]
    assert "the connection to loopback was lost" in capsys.readouterr().out
    tried.clear()
    losses = 9
    with pytest.raises(ConnectionLost, match="the connection to loopback was lost"):
        board.steadily(run)
    assert tried == [0, 1, 2]


def end_ssh(candidate: Candidate) -> None:
    """End what stands for ssh as a lost connection does: it closes the pipes, and its exit code is ssh's own."""
    child: Any = candidate.ready_child()
    os.killpg(child.process.pid, signal.SIGKILL)
    child.process.wait()
    child.process.returncode = 255


def test_a_device_that_restarted_ends_the_row(board: Ssh) -> None:
    board.connect()
    board._facts["boot"] = "an earlier one"
    board.close()
    with pytest.raises(ChildFailed, match="ended with loopback, which has restarted meanwhile"):
        board.connect()


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, make_artifact: MakeArtifact) -> None:
    small = device(tmp_path)
    small.connect()
    small.close()
    command = tmp_path / "ssh"
    command.write_text(command.read_text().replace("cd ", "ulimit -f 200\ncd ", 1))
    artifact = make_artifact(weights=np.random.default_rng(0).standard_normal((3, 20_000)))
    candidate = on(small, Fake(), artifact)
    with pytest.raises(ChildFailed, match=r"cannot write to .*\.cache/qexp on the device: File too large"):
        candidate.start()
    candidate.close()
    small.close()
    assert not [*(tmp_path / "home" / ".cache" / "qexp").rglob("model.pt2*")]


LIES = {
    "floods": "while True: print('{}')",
    "floods without an end": "while True: print('x' * 100_000, end='')",
    "is no JSON": "return 'welcome to the board'",
    "is a list": "return '[1, 2]'",
    "is too deep": "return '[' * 100_000",
    "ends": "sys.exit(7)",
    "says nonsense": 'return \'{"code": 3, "folder": [1]}\'',
    "goes on for ever": 'return \'{"done": 1, "total": 2}\'',
}


@pytest.mark.parametrize("lie", LIES)
def test_a_device_that_lies_about_itself_is_refused(lie: str, tmp_path: Path) -> None:
    liar = device(tmp_path, ssh=str(answering(tmp_path, LIES[lie])))
    with pytest.raises(UserError, match="loopback cannot be used: "):
        liar.connect()
    liar.close()


@pytest.mark.parametrize(
    ("stored", "wrong"),
    [
        (np.zeros((4, 9), np.float32), r"logits of the shape \(4, 9\) and type float32, not \(50, 6\) floats"),
        (np.zeros((50, 6), np.int64), "type int64"),
        (np.zeros((5000, 600)), "more than the"),
        (b"\x80\x04N.", "logits that cannot be read"),
        (np.array([{}], object), "logits that cannot be read"),
    ],
)
def test_a_device_that_lies_about_shapes_ends_its_row(
    stored: Any, wrong: str, board: Ssh, make_artifact: MakeArtifact, tests_of: TestsOf, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    candidate = on(board, Fake(), make_artifact())
    images = tests_of(candidate.artifact)
    lie = tmp_path / "home" / ".cache" / "qexp" / "answers" / "lie.npy"
    lie.parent.mkdir(parents=True)
    if isinstance(stored, bytes):
        lie.write_bytes(stored)
    else:
        np.save(lie, stored, allow_pickle=True)
    receive = board.keeper.receive
    monkeypatch.setattr(board.keeper, "receive", lambda file, most: receive(str(lie), most))
    with pytest.raises(ChildFailed, match=wrong):
        candidate.logits(images, 4, tmp_path / "cache")
    candidate.close()


def test_times_that_cannot_be_end_the_row(
    board: Ssh, make_artifact: MakeArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = on(board, Takes(0), make_artifact())  # whose calls take no time at all
    with pytest.raises(ChildFailed, match="answered with what cannot be: a time in ms"):
        candidate.window(3, 0)
    candidate.close()


def test_what_cannot_be_reached_is_explained(tmp_path: Path) -> None:
    for said, advice in (
        ("Host key verification failed.", "ssh does not know its host key, or another one. Connect by hand once"),
        ("pi@board: Permission denied (publickey).", "it takes none of your keys. ssh-copy-id gives it one"),
        ("ssh: Could not resolve hostname board", "no machine of that name is known"),
    ):
        refuses = script(tmp_path / "refuses", f"#!/bin/sh\necho {shlex.quote(said)} >&2\nexit 255\n")
        with pytest.raises(UserError, match=advice):
            device(tmp_path, ssh=str(refuses)).connect()
    lost = script(tmp_path / "lost", "#!/bin/sh\necho 'Connection timed out' >&2\nexit 255\n")
    with pytest.raises(ConnectionLost, match="the connection to loopback was lost: Connection timed out"):
        device(tmp_path, ssh=str(lost)).connect()
    with pytest.raises(UserError, match="/no/ssh is not installed, and device=loopback needs it"):
        device(tmp_path, ssh="/no/ssh").connect()
    with pytest.raises(UserError, match="has no /no/python: name its Python in device.python"):
        device(tmp_path, python="/no/python").connect()
    with pytest.raises(UserError, match="device.host='-oProxyCommand=x' is no machine"):
        device(tmp_path, host="-oProxyCommand=x")


def test_engines_that_do_not_run_there_say_what_to_do(board: Ssh) -> None:
    with pytest.raises(Unsupported, match="loopback has no no_such_library: .*ssh loopback .* -m pip install no_such_"):
        board.check(Missing())
    with pytest.raises(Unsupported, match="inductor compiles its file for the processor of this machine"):
        board.check(configured.engine("inductor"))
    board.check(configured.engine("inductor", packaged=False))
    board.check(Fake())


def test_an_emulated_processor_is_timed_for_nothing(tmp_path: Path) -> None:
    board = device(tmp_path, emulated=True)
    assert board.emulated and board.decides["device"]["emulated"]
    notes: dict[str, str] = {}
    given = [METRICS["latency_ms"].of(3.0), METRICS["top1"].of(0.9), METRICS["memory_mb"].of(7.0)]
    found = marked_as_emulated(given, notes)
    assert [m.kind for m in found] == ["emulated", "measured", "emulated"] and "emulated" in notes["emulated"]
    board.close()


def test_a_command_cleans_and_tells(tmp_path: Path, make_artifact: MakeArtifact) -> None:
    board = device(tmp_path)
    candidate = on(board, Fake(), make_artifact())
    candidate.start()
    candidate.close()
    assert board.clean() > 0 and not [*(tmp_path / "home" / ".cache").rglob("*.pt2")]
    board.close()
    candidate.start()  # everything is sent again
    candidate.close()
    board.close()


def test_accuracy_is_that_of_the_file_here_or_of_images_that_the_device_classifies(
    make_artifact: MakeArtifact, tests_of: TestsOf, weights: Any, colours: np.ndarray, tmp_path: Path
) -> None:
    artifact = make_artifact(weights=weights[0])
    images = tests_of(artifact)
    right = (colours @ weights[0]).argmax(1) == images.classes
    accuracy = configured.measure("accuracy", batch_size=7)
    for count in (None, 9):
        board, notes = device(tmp_path, accuracy_images=count), dict[str, str]()
        candidate = on(board, Scores(), artifact)
        judged = judge_of(candidate, None, notes)
        context = Context(candidate, None, images, tmp_path / "cache", judged=judged, notes=notes)
        accuracy.prepare(context)
        found = {m.name: m.value for m in accuracy.measure(context)}
        chosen = right if count is None else right[np.linspace(0, len(right) - 1, count).round().astype(int)]
        assert found["top1"] == pytest.approx(chosen.mean())
        assert ("test_seconds" in found) is (count is not None), "that is the time of a device, if of any"
        said = "agrees on the images of parity" if count is None else "of 9 images, spread over all of them"
        assert said in notes["top1"]
        context.close()
        board.close()


def test_accuracy_of_an_engine_that_is_not_here_is_the_devices_own_or_none(
    board: Ssh, make_artifact: MakeArtifact, tests_of: TestsOf, tmp_path: Path
) -> None:
    candidate, notes = on(board, Missing(), make_artifact()), dict[str, str]()
    context = Context(candidate, None, tests_of(candidate.artifact), tmp_path / "cache", notes=notes)
    assert judge_of(candidate, None, notes) is None
    assert configured.measure("accuracy").measure(context) == []
    assert "missing does not run on this machine: device.accuracy_images" in notes["top1"]
