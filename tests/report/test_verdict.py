"""The verdict against rows for which it is known by looking at them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qexp.report.runs import Run
from qexp.report.verdict import CAUTION, Verdict, as_text, caution, verdicts
from tests.report.support import record


def row(
    label: str, top1: float, size: float, ms: float, p: float | None = None, host: str = "one", **more: float
) -> Run:
    """Its latency's interval is 1 % wide to either side."""
    known = more if p is None else more | {"mcnemar_p": p}
    timed = {"latency_ms": ms, "latency_low_ms": 0.99 * ms, "latency_high_ms": 1.01 * ms}
    made = record(label, top1=top1, top1_drop=0.9 - top1, size_mb=size, **timed, **known)
    return Run(replace(made, environment={"host": host}), Path())


FP32 = row("none", 0.9, 10, 4)
NO_KNEE = (
    "The front of accuracy against size on disk has no knee: its runs do not differ in accuracy by more than chance."
)
INT8 = row("static int8", 0.895, 2.5, 1, 0.2, speedup=4.0, speedup_vs_best_fp32=2.0)
INT4 = row("static int4", 0.87, 1.3, 0.9, 0.001)
HALF = row("half bf16", 0.9, 5, 1.01, 1.0)


def only(found: list[Verdict]) -> tuple[str, ...]:
    (verdict,) = found
    return verdict.sentences


def test_fastest_and_smallest_within_the_points() -> None:
    said = only(verdicts([FP32, INT8, INT4, HALF], points=1))
    assert said[0] == (
        "Fastest within 1 point of fp32 (90.00 %): static int8 on eager, 1.00 ms (0.990 to 1.01), 89.50 %, "
        "4.00x as fast as fp32 on eager "
        "PyTorch, 2.00x as fast as the best fp32 engine. Not told apart from it: half bf16 on eager."
    )
    assert said[1] == "Smallest within 1 point of fp32 (90.00 %): static int8 on eager, 2.50 MB, 89.50 %."
    assert said[2] == "Smallest of all: static int4 on eager, 1.30 MB, 87.00 %, 3.00 points lower than fp32."
    assert said[-2:] == (
        "No difference from fp32 in accuracy was shown (McNemar's test, p ≥ 0.05): "
        "static int8 on eager, half bf16 on eager.",
        "A difference was shown (p < 0.05): static int4 on eager.",
    )


def test_a_fastest_run_that_fp32_beats_is_told_so() -> None:
    slow = row(
        "static int8",
        0.9,
        2.5,
        2,
        speedup_vs_best_fp32=0.6,
        speedup_vs_best_fp32_low=0.5,
        speedup_vs_best_fp32_high=0.8,
    )
    noted = replace(
        slow, record=replace(slow.record, notes={"speedup_vs_best_fp32": "the fastest fp32 engine here was openvino"})
    )
    assert only(verdicts([FP32, noted], 1))[0].endswith(
        " fp32 is faster than it: the fastest fp32 engine here was openvino."
    )
    maybe = row(
        "static int8",
        0.9,
        2.5,
        2,
        speedup_vs_best_fp32=0.9,
        speedup_vs_best_fp32_low=0.8,
        speedup_vs_best_fp32_high=1.1,
    )
    assert "fp32 is faster" not in only(verdicts([FP32, maybe], 1))[0], "the interval does not tell"


def test_the_points_decide() -> None:
    assert "static int4 on eager, 0.900 ms" in only(verdicts([FP32, INT8, INT4], points=3.01))[0]
    assert "none on eager, 4.00 ms" in only(verdicts([FP32, INT8, INT4], points=0))[0]
    said = only(verdicts([INT8, INT4], points=0.1))
    assert (
        said[0] == "No run is within 0.1 points of fp32 (90.00 %); "
        "the nearest is static int8 on eager, 89.50 %, 0.50 points lower."
    )


def test_the_knee_is_that_of_the_front() -> None:
    rows = [row("tiny", 0.1, 1, 1), row("good", 0.89, 2, 10), row("best", 0.9, 3, 100), row("bad", 0.2, 2, 20)]
    of_latency, of_size = (text for text in only(verdicts(rows, 1)) if text.startswith("Knee"))
    assert of_latency.startswith("Knee of the front of accuracy against latency of one call: good on eager, 10.0 ms")
    assert of_size == "Knee of the front of accuracy against size on disk: good on eager, 2.00 MB, 89.00 %."


@pytest.mark.parametrize(("half_width", "p", "apart"), [(0.006, 0.2, False), (0.006, 0.01, True), (0.004, 0.2, True)])
def test_accuracies_that_chance_explains_have_no_knee(half_width: float, p: float, apart: bool) -> None:
    def judged(label: str, top1: float, size: float, ms: float, p: float) -> Run:
        return row(label, top1, size, ms, p, top1_low=top1 - half_width, top1_high=top1 + half_width)

    rows = [judged("fp32", 0.9, 100, 100, 1.0), judged("half", 0.899, 50, 10, 0.8), judged("static", 0.89, 25, 1, p)]
    said = [text for text in only(verdicts(rows, 1)) if " front of " in text]
    knee = "Knee of the front of accuracy against size on disk: half on eager, 50.0 MB, 89.90 %."
    assert len(said) == 2 and said[1] == (knee if apart else NO_KNEE)


def test_times_are_never_compared_across_machines_nor_shapes() -> None:
    other = [row("none", 0.9, 10, 0.4, host="two"), row("static int8", 0.895, 2.5, 0.1, host="two")]
    found = verdicts([FP32, INT8, *other], 1)
    assert [verdict.title for verdict in found] == ["vgg, pets, on one", "vgg, pets, on two"]
    assert "1.00 ms" in found[0].sentences[0] and "0.100 ms" in found[1].sentences[0]
    assert not any("0.100" in text for text in found[0].sentences)
    batch = [
        replace(run, record=replace(run.record, params={**run.record.params, "batch_size": 8})) for run in (FP32, INT8)
    ]
    assert [v.title for v in verdicts([FP32, INT8, *batch], 1)] == ["vgg, pets, batch 1", "vgg, pets, batch 8"]


def test_models_have_their_own_baseline_and_share_a_knee() -> None:
    def of(model: str, run: Run) -> Run:
        return replace(run, record=replace(run.record, params={**run.record.params, "model": model}))

    small = [
        of("lenet", row("none", 0.1, 1, 1)),
        of("lenet", row("static", 0.1, 1, 1.1)),
        of("lenet", row("qat", 0.89, 1, 10)),
    ]
    found = verdicts([*small, row("none", 0.9, 10, 100), row("static", 0.8, 10, 200)], 1)
    assert [verdict.title for verdict in found] == ["lenet, pets", "vgg, pets", "all models, pets"]
    assert "lenet qat on eager" in found[2].sentences[0]


def test_without_accuracy_there_is_no_baseline() -> None:
    rows = [
        Run(record(label, size_mb=size, latency_ms=ms), Path())
        for label, size, ms in (("a", 1.0, 2.0), ("b", 2.0, 1.0))
    ]
    assert only(verdicts(rows, 1))[1:] == ("Fastest: b on eager, 1.00 ms.", "Smallest: a on eager, 1.00 MB.")
    assert caution(verdicts(rows, 1)) == "" and CAUTION not in as_text(verdicts(rows, 1))


def test_the_validation_images_take_the_place_of_test_images_that_nobody_saw() -> None:
    made = [
        record(label, val_top1=top1, val_top1_drop=0.9 - top1, size_mb=mb)
        for label, top1, mb in (("a", 0.9, 2.0), ("b", 0.895, 1.0))
    ]
    rows = [Run(each, Path()) for each in made]
    assert "Smallest within 1 point of fp32 (90.00 %): b on eager, 1.00 MB, 89.50 %." in only(verdicts(rows, 1))
    assert CAUTION not in as_text(verdicts(rows, 1))


@pytest.mark.parametrize("rows", [[], [FP32], [Run(record("bad", status="failed"), Path()), INT8]])
def test_one_run_has_no_verdict(rows: list[Run]) -> None:
    assert verdicts(rows, 1) == [] and as_text([]) == ""


def test_as_markdown() -> None:
    text = as_text(verdicts([FP32, INT8], 1))
    assert text.startswith("**vgg, pets**\n\n- Fastest within") and text.endswith(CAUTION)


def test_what_holds_a_run_back_is_said_of_those_that_are_hardly_faster_than_fp32() -> None:
    why = {"operators": "45% of the time goes to floating point (14 HardSwish)"}

    def held(label: str, gain: float, notes: dict[str, str]) -> Run:
        run = row(label, 0.895, 2.5, 1, 0.2, speedup_vs_best_fp32=gain)
        return replace(run, record=replace(run.record, notes=notes))

    rows = [FP32, held("static a", 1.9, why), held("static b", 2.0, why), held("static c", 0.8, why)]
    rows += [held("static d", 0.5, {}), held("static e", 0.6, why), held("static f", 0.4, why)]
    said = [sentence for sentence in only(verdicts(rows, points=1)) if "as fast as the best fp32:" in sentence]
    assert said == [
        f"static {name} on eager is {gain} as fast as the best fp32: {why['operators']}."
        for name, gain in (("a", "1.90x"), ("c", "0.80x"), ("e", "0.60x"))
    ]
