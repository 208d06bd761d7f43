"""Agreement and error against NumPy, on classifiers whose logits are known; who fails for it, and who does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qexp.artifact import Artifact, EngineSpec, Layer
from qexp.engine.base import Engine
from qexp.launch import ChildFailed
from qexp.measure.base import Context, ParityError
from qexp.measure.candidate import Candidate
from qexp.measure.parity import Parity
from qexp.records import Measurement
from tests.measure.conftest import IMAGES, QUANTIZED, SPEC, measuring_children
from tests.measure.fake_engines import Fails, Says, Scores

LIMITS = {"least_agreement": 0.99, "decided": 4, "most_error": 0.01, "most_error_half": 0.1, "most_rounding": 2}
ALL = Parity(images=IMAGES, batch_size=16, **LIMITS)
HALF = (Layer("fc", "linear", 300, 1000, "float16", "float16"),)
Make = Callable[..., Context]


def by_name(found: list[Measurement]) -> dict[str, float]:
    assert {m.unit for m in found} <= {"fraction"}
    return {m.name: m.value for m in found}


@pytest.fixture
def make(
    make_artifact: Callable[..., Artifact],
    make_candidate: Callable[..., Candidate],
    weights: Any,
    tests_of: Any,
    tmp_path: Path,
) -> Make:
    """Makes a bench of `engine` on an artifact with the second weights, changed as asked.

    Beside it is `Scores`, on an fp32 artifact with the first weights, or with the second if `rounded` is false.
    """

    def made(engine: Engine, baseline: Engine | None = None, rounded: bool = True, **changes: Any) -> Context:
        artifact = make_artifact("compressed", weights[1], **changes)
        baseline = baseline or Scores()
        other = make_candidate(baseline, make_artifact("fp32", weights[0 if rounded else 1]))
        return Context(make_candidate(engine, artifact), other, tests_of(artifact), tmp_path / "cache")

    return made


def test_an_engine_that_runs_the_graph_agrees_with_it(make: Make) -> None:
    assert by_name(ALL.measure(make(Scores(bias=1e-6), layers=QUANTIZED))) == {
        "parity_agreement": 1, "parity_max_error": pytest.approx(0, abs=1e-5),
    }  # fmt: skip


def test_agreement_and_error_are_those_of_the_logits(
    make: Make, colours: np.ndarray, weights: list[np.ndarray]
) -> None:
    lenient = Parity(images=IMAGES, batch_size=16, **{**LIMITS, "least_agreement": 0.1})
    values = by_name(lenient.measure(make(Scores(bias=0.8), layers=QUANTIZED)))
    reference = colours @ weights[1]
    biased = reference + [0.8, 0, 0, 0, 0, 0]
    same = int((biased.argmax(1) == reference.argmax(1)).sum())
    assert 0.1 * IMAGES < same < 0.99 * IMAGES
    assert values == {
        "parity_agreement": same / IMAGES,
        "parity_max_error": pytest.approx(0.8 / np.abs(reference).max(), rel=1e-5),
    }


@pytest.mark.parametrize(
    ("bias", "found"), [(0, {"parity_agreement": 1, "parity_max_error": 0}), (-0.5, {"parity_agreement": 0})]
)
def test_all_logits_zero_have_no_relative_error(
    bias: float, found: dict[str, float], make: Make, weights: list[np.ndarray]
) -> None:
    weights[1][:] = 0
    context = make(Scores(bias=bias), layers=QUANTIZED)
    assert by_name(Parity(IMAGES, batch_size=16, **{**LIMITS, "least_agreement": 0}).measure(context)) == found
    assert ("parity_max_error" in context.notes) == (bias != 0)


def test_a_graph_that_an_engine_does_not_run_is_an_error_with_the_figures(
    make: Make, colours: np.ndarray, weights: list[np.ndarray]
) -> None:
    context = make(Scores(bias=0.8), rounded=False, layers=QUANTIZED)
    reference = colours @ weights[1]
    same = ((reference + [0.8, 0, 0, 0, 0, 0]).argmax(1) == reference.argmax(1)).mean()
    with pytest.raises(ParityError) as error:
        ALL.measure(context)
    assert str(error.value) == (
        "scores does not compute what the graph says: of 50 images about which the reference is decided "
        f"{100 * same:.1f}% get its class, at least 99.0% must; the largest error is "
        f"{80 / np.abs(reference).max():.1f}% of the largest logit. Take another engine, or "
        "measure.parity.least_agreement=SHARE if rounding may decide so many images of this network"
    )


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_one_image_in_a_hundred_may_differ_and_no_more(wrong: int, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference, the engine and fp32 are asked in this order, and their logits of 100 images are given."""
    given = iter(np.eye(6)[np.where(np.arange(100) < differing, 2, 1)] for differing in (0, wrong, 2))
    monkeypatch.setattr(Candidate, "logits", lambda *_: (next(given), 1.0))
    context = make(Scores(), layers=QUANTIZED)
    if wrong > 1:
        with pytest.raises(ParityError, match=r"of 100 images about which the reference is decided 98\.0% get"):
            ALL.measure(context)
    else:
        assert by_name(ALL.measure(context))["parity_agreement"] == 1 - wrong / 100


@pytest.mark.parametrize(("margin", "refused"), [(0.9, False), (1.1, True)])
def test_a_tie_that_rounding_decides_does_not_count(
    margin: float, refused: bool, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Integers change each logit by 0.1. Half of the images get another class, by a margin of so many times 0.4."""
    rng, exact = np.random.default_rng(0), np.zeros((100, 6))
    exact[:, 0], exact[:, 1] = 3.0, 3.0 - margin * 0.4
    expected = exact + 0.1 * rng.choice([-1, 1], (100, 1))  # the same for all logits, so that margins stay
    engine = expected.copy()
    engine[::2, [0, 1]] = engine[::2, [1, 0]]
    given = iter([expected, engine, exact, exact])
    monkeypatch.setattr(Candidate, "logits", lambda *_: (next(given), 1.0))
    tolerant = Parity(images=IMAGES, batch_size=16, **{**LIMITS, "most_rounding": 99})
    context = make(Scores(), layers=QUANTIZED)
    if refused:
        with pytest.raises(ParityError, match=r"of 100 images about which the reference is decided 50\.0% get"):
            tolerant.measure(context)
    else:
        assert by_name(tolerant.measure(context))["parity_agreement"] == 0.5


@pytest.mark.parametrize(("layers", "limit"), [((), 0.01), (HALF, 0.1)], ids=["fp32", "fp16"])
@pytest.mark.parametrize("share", [0.9, 1.1])
def test_in_floating_point_the_error_is_no_more_than_rounding_can_make(
    layers: tuple[Layer, ...], limit: float, share: float, make: Make, colours: np.ndarray, weights: list[np.ndarray]
) -> None:
    bias = share * limit * float(np.abs(colours @ weights[1]).max())
    context = make(Scores(bias=bias), rounded=False, layers=layers, random_weights=True)
    if share < 1:
        assert by_name(ALL.measure(context)) == {"parity_max_error": pytest.approx(share * limit, rel=1e-3)}
    else:
        with pytest.raises(ParityError, match=rf"rounding makes at most {100 * limit:.1f}% of it"):
            ALL.measure(context)


def test_a_graph_that_spells_out_its_integers_is_its_own_reference(make: Make) -> None:
    context = make(Says(1), layers=QUANTIZED)
    reference = ALL.reference(context)
    assert (
        context.baseline
        and reference
        and reference.artifact is context.candidate.artifact
        and reference.engine is context.baseline.engine
    )


@pytest.mark.parametrize(
    "spec", [EngineSpec(("torchscript",), kernels="x86"), EngineSpec(("onnx",))], ids=lambda spec: spec.formats[0]
)
def test_packed_integers_are_compared_with_fp32_and_fail_nobody(spec: EngineSpec, make: Make) -> None:
    assert by_name(ALL.measure(make(Scores(), layers=QUANTIZED, engine_spec=spec)))["parity_agreement"] < 0.99


@pytest.mark.parametrize(
    "changes", [{"data": replace(SPEC, pretend=True)}, {"random_weights": True}], ids=["pretend", "random"]
)
def test_where_predictions_mean_nothing_only_the_error_counts(changes: dict[str, Any], make: Make) -> None:
    context = make(Scores(bias=0.8), layers=QUANTIZED, **changes)
    assert by_name(ALL.measure(context)).keys() == {"parity_max_error"}


@pytest.mark.parametrize("share", [1.9, 2.1])
@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        (QUANTIZED, "its error is 2.1 times what integers change in the network"),
        (HALF, r"rounding makes at most 10\.0% of it"),
    ],
    ids=["integers", "fp16"],
)
def test_an_engine_is_no_further_from_its_graph_than_rounding_can_put_it(
    layers: tuple[Layer, ...], reason: str, share: float, make: Make, colours: np.ndarray, weights: list[np.ndarray]
) -> None:
    """Even where predictions mean nothing. One of the six logits is off, so its error counts for a sixth.

    Rounding to half precision is as large here as in a deep network, where 10 % of the largest logit are too strict.
    """
    rounding = np.sqrt(np.square(colours @ (weights[1] - weights[0])).mean())
    context = make(Scores(bias=share * rounding * 6**0.5), layers=layers, random_weights=True)
    if share < 2:
        assert by_name(ALL.measure(context)).keys() == {"parity_max_error"}
    else:
        with pytest.raises(ParityError, match=reason):
            ALL.measure(context)


def test_what_is_no_number_is_refused(make: Make) -> None:
    with pytest.raises(ParityError, match="scores, or what it is compared with, gives logits that are not finite"):
        ALL.measure(make(Scores(bias=np.nan), random_weights=True))


def test_the_images_are_spread_evenly_over_the_test_set(
    make: Make, colours: np.ndarray, weights: list[np.ndarray]
) -> None:
    context = make(Scores())
    assert context.test_set
    chosen = [0, 7, 14, 21, 28, 35, 42, 49]
    logits, _ = context.candidate.logits(context.test_set, 3, context.cache, count=8)
    np.testing.assert_allclose(logits, colours[chosen] @ weights[1], rtol=1e-5, atol=1e-6)
    everything, _ = context.candidate.logits(context.test_set, 3, context.cache)
    np.testing.assert_allclose(everything, colours @ weights[1], rtol=1e-5, atol=1e-6)
    more_than_there_are, _ = context.candidate.logits(context.test_set, 3, context.cache, count=512)
    np.testing.assert_array_equal(more_than_there_are, everything)


def test_as_many_images_as_asked_for_are_compared(
    make: Make, colours: np.ndarray, weights: list[np.ndarray], tmp_path: Path
) -> None:
    context = make(
        Scores(log=str(tmp_path / "candidate")), baseline=Scores(log=str(tmp_path / "reference")), layers=QUANTIZED
    )
    assert by_name(Parity(images=8, batch_size=3, **LIMITS).measure(context))["parity_agreement"] == 1
    for log in ("candidate", "reference"):
        calls = [int(line) for line in (tmp_path / log).read_text().split()]
        assert calls[:4] == [2] * 4 and calls[4:] == [3, 3, 2], "two images per call to load, three to compare"


def test_the_reference_is_gone_when_it_has_answered(make: Make) -> None:
    context = make(Scores(bias=1e-6), layers=QUANTIZED)
    ALL.measure(context)
    assert measuring_children() == {context.candidate.ready_child().process.pid}


def test_the_reference_itself_is_not_asked_twice(make: Make) -> None:
    context = make(Scores(), layers=QUANTIZED)
    assert by_name(ALL.measure(context)) == {"parity_agreement": 1, "parity_max_error": 0}
    assert not measuring_children(), "the engine's own logits were on disk already"


def test_a_reference_that_fails_is_gone_too(make: Make) -> None:
    context = make(Scores(), baseline=Fails("error"), layers=QUANTIZED)
    with pytest.raises(ChildFailed, match="wrong colour"):
        ALL.measure(context)
    assert not measuring_children()


def test_the_baseline_keeps_its_child(make: Make) -> None:
    context = make(Scores(), engine_spec=EngineSpec(("torchscript",), kernels="x86"))  # so that it is the reference
    ALL.measure(context)
    assert context.baseline and measuring_children() == {
        context.candidate.ready_child().process.pid,
        context.baseline.ready_child().process.pid,
    }


@pytest.mark.parametrize("missing", ["baseline", "test_set"])
def test_without_something_to_compare_a_note_says_so(missing: str, make: Make) -> None:
    context = make(Fails("leave"))
    setattr(context, missing, None)
    assert ALL.measure(context) == []
    assert context.notes == {"parity_agreement": "there is no reference, or no images, to compare with"}
