"""A search within limits through the command: what it refuses, what it answers, and that a kill changes nothing."""

from __future__ import annotations

import json
import random
import shlex
import time
from pathlib import Path
from typing import Any

import pytest

from qexp.artifact import Artifact
from qexp.tracking.store import read_records
from qexp.within_limits.answer import Answer
from tests.commands import FEW_WINDOWS, PRETEND, TRAINED, RunCommand, write_images
from tests.processes import started
from tests.tiers import more

pytestmark = pytest.mark.integration

LIMITS = ["experiment=within", "limits.drop=50", "limits.engines=[onnxruntime]", "minimise=size_mb"]
QUICK = [*LIMITS, *FEW_WINDOWS, "measure.parity=null", "tracking=none"]
DIGITS = [
    "model=lenet5", "data=digits", "recipe.epochs=4", "recipe.batch_size=64", "recipe.optimizer.lr=0.05", "trainer=cpu",
]  # fmt: skip
KILLS = 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["limits.latency_ms=-2"], "limits.latency_ms=-2 is out of range; give ms above 0, or null for no limit."),
        (["limits.latncy_ms=2"], "latncy_ms"),
        (["data=random"], "has pretend images, on which accuracy means nothing"),
        *more(
            (["minimise=latency_ms,size_mb"], "for one network. Give minimise=[latency_ms,size_mb]"),
            (["method=static"], "method=static: the search decides method. Give limits.methods="),
            (["method.observer=mse"], "the search decides method"),
            (["engine=openvino"], "the search decides engine. Give limits.engines="),
            (["measure.accuracy.part=test"], "the search decides measure.accuracy.part"),
            (["model=resnet8,resnet20"], "several values, and a search is for one network"),
            (["measure.size=null"], "measure.size is null, and size_mb is limited or minimised"),
            (["measure.accuracy=null"], "a search within limits chooses by accuracy"),
            (["limits.engines=[opnvino]"], "limits.engines=opnvino is unknown. did you mean 'openvino'"),
            (["limits.engines=[tensorrt]"], "limits.engines has tensorrt, which does not run here"),
            (["checkpoint=random"], "weights that were not trained have no accuracy to hold"),
            (["limits.drop=null"], "would find a network that answers at random"),
        ),
    ],
)
def test_what_cannot_be_searched_is_told_before_anything_runs(
    run: RunCommand, tmp_path: Path, words: list[str], message: str
) -> None:
    network = [word for word in PRETEND if not word.startswith("checkpoint") or "data=random" not in words]
    code, printed = run(*network, *QUICK, *words)
    assert code == 1 and message in printed and "Traceback" not in printed, printed
    assert not list((tmp_path / "outputs").glob("sweeps/*/*/record.json"))


@pytest.mark.thorough
def test_weights_that_may_know_the_validation_images_are_refused(run: RunCommand, tmp_path: Path) -> None:
    write_images(tmp_path / "pictures")
    code, _ = run(*TRAINED, *FEW_WINDOWS, f"data.root={tmp_path / 'pictures'}", "method=none", "engine=onnxruntime")
    (weights,) = (tmp_path / "outputs" / "baselines").glob("*/model.safetensors")
    words = [*TRAINED, *QUICK, f"data.root={tmp_path / 'pictures'}", f"checkpoint={weights}"]
    assert (
        code == 0 and "whether these weights were trained on images of the validation part is unknown" in run(*words)[1]
    )


def answered(outputs: Path) -> tuple[Answer, Path]:
    """The answer of the last search, and the folder of its sweep."""
    *_, last = sorted((outputs / "sweeps").iterdir())
    answer = Answer.read(last)
    assert answer
    return answer, last


@pytest.mark.thorough
def test_it_answers_with_what_holds_and_hands_it_over(
    run: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "pictures")
    words = [*TRAINED, *QUICK, "limits.training=false", "limits.methods=[none,static]"]
    code, printed = run(*words)
    assert code == 0, printed
    answer, sweep = answered(tmp_path / "outputs")
    fp32, int8, final = read_records(sweep)
    assert answer.chosen == "static int8 on onnxruntime" and [row.holds for row in answer.rows] == [True, True]
    assert int8.metrics["size_mb"] < fp32.metrics["size_mb"] and answer.others[0].startswith(
        "fp32 on onnxruntime: size"
    )
    assert not any("top1" in record.metrics for record in (fp32, int8)), "test images are for the answer alone"
    assert {"top1", "val_top1", "mcnemar_p"} <= final.metrics.keys() and final.artifact == int8.artifact
    assert answer.sentence in printed and "on test images: top-1" in printed and answer.command in printed
    assert answer.sentence in (sweep / "results.md").read_text() and (sweep / "within.png").exists()
    deployed = Path(answer.folder)
    assert deployed.name == "resnet8-pictures-drop50-least-size_mb" and (deployed / "infer.py").exists()
    assert json.loads((deployed / "deployment.json").read_text())["artifact"] == Artifact.read(Path(int8.artifact)).key


@pytest.mark.thorough
def test_what_cannot_be_held_is_told_with_the_nearest(run: RunCommand, tmp_path: Path) -> None:
    words = [*QUICK, "limits.size_mb=0.001", "limits.methods=[none,static]", "limits.training=false"]
    code, printed = run(*DIGITS, *words)
    answer, sweep = answered(tmp_path / "outputs")
    assert code == 1 and not answer.chosen and not answer.folder and "top1" not in read_records(sweep)[-1].metrics
    assert answer.sentence.startswith("Nothing that was tried holds all limits")
    assert "The nearest is static int8 on onnxruntime: size_mb 0.07" in printed and "limit 0.001: missed" in printed


@pytest.mark.thorough
def test_the_command_makes_the_artifact_again_and_tighter_limits_go_on_from_what_is_known(
    run: RunCommand, tmp_path: Path
) -> None:
    words = [*DIGITS, *QUICK, "limits.methods=[none,static,prune_channels]"]
    assert run(*words)[0] == 0
    first, sweep = answered(tmp_path / "outputs")
    assert "times fewer parameters" in first.chosen
    program, script, *again = shlex.split(first.command)
    assert (program, script) == ("python", "compress.py") and not any("limits" in word for word in again)
    assert run(*again, "force=true")[0] == 0
    (record,) = [r for r in read_records(sorted((tmp_path / "outputs" / "sweeps").iterdir())[-1])]
    assert Path(record.artifact).name == Path(first.artifact).name

    assert run(*words, "limits.size_mb=0.06")[0] == 0
    second, sweep = answered(tmp_path / "outputs")
    known = {row.name for row in first.rows}
    fresh = [record for record in read_records(sweep) if not record.reused]
    assert len(fresh) == len([row for row in second.rows if row.name not in known])


def told(folder: Path) -> tuple[Any, ...]:
    answer, _ = answered(folder / "outputs")
    values = [
        (row.name, row.status, row.values.get("drop"), round(row.values.get("size_mb", 0), 3)) for row in answer.rows
    ]
    return answer.chosen, values, answer.test, Path(answer.artifact).name


@pytest.mark.thorough
def test_a_search_killed_at_random_moments_answers_the_same_and_computes_nothing_twice(tmp_path: Path) -> None:
    command = [*DIGITS, *QUICK, "limits.methods=[none,static,prune_channels]", "limits.minutes=600", "outputs=outputs",
               "report.formats=[md]"]  # fmt: skip
    folders = [tmp_path / name / "here" for name in ("undisturbed", "killed")]
    whole, began = started(folders[0], command), time.monotonic()
    whole.join(600)
    took = time.monotonic() - began
    assert whole.exitcode == 0, (folders[0] / "log.txt").read_text()
    moments = random.Random(0)
    for _ in range(KILLS):
        victim = started(folders[1], command)
        victim.join(moments.uniform(0.05, 0.4) * took)
        victim.kill()
        victim.join()
    last = started(folders[1], command)
    last.join(600)
    log = (folders[1] / "log.txt").read_text()
    assert last.exitcode == 0 and "damaged" not in log and "Traceback" not in log, log
    assert told(folders[1]) == told(folders[0])
    records = [record for sweep in (folders[1] / "outputs" / "sweeps").iterdir() for record in read_records(sweep)]
    computed = [record.key for record in records if not record.reused and record.status == "finished"]
    assert len(computed) == len({*computed}) == len({r.key for r in records if r.status == "finished"})
