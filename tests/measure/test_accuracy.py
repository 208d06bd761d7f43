"""Scores against scikit-learn in float64, differences from the baseline by hand, and what the kept logits depend on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binom
from sklearn.metrics import log_loss, top_k_accuracy_score

from qexp.artifact import Artifact
from qexp.data.decoded import DecodedPart, write_part
from qexp.engine.base import Engine
from qexp.launch import ChildFailed
from qexp.measure.accuracy import drop_interval, mcnemar, score
from qexp.measure.base import Context
from qexp.measure.candidate import Candidate
from qexp.measure.images import EvaluationSet
from qexp.records import Measurement
from qexp.types import UserError
from tests import configured
from tests.measure.conftest import IMAGES, SPEC
from tests.measure.fake_engines import CLASSES, Scores

MakeCandidate = Callable[..., Candidate]


def by_name(found: list[Measurement]) -> dict[str, float]:
    return {m.name: m.value for m in found}


@pytest.mark.parametrize(("classes", "scale"), [(6, 1), (10, 1), (100, 5), (10, 1e4)])
def test_scores_are_scikit_learns(classes: int, scale: float) -> None:
    rng = np.random.default_rng(classes)
    logits, labels = (scale * rng.standard_normal((200, classes))).astype(np.float32), rng.integers(classes, size=200)
    values = score(logits, labels)
    known, wide = range(classes), logits.astype(np.float64)
    assert values["top1"] == top_k_accuracy_score(labels, wide, k=1, labels=known)
    assert values["top5"] == top_k_accuracy_score(labels, wide, k=5, labels=known)
    if scale < 1e3:  # beyond, scikit-learn clips the probabilities
        assert values["loss"] == pytest.approx(log_loss(labels, softmax(wide, 1), labels=known), rel=1e-9)
    else:
        assert values["loss"] == pytest.approx(np.mean(wide.max(1) - wide[np.arange(200), labels]), rel=1e-3)


def test_the_interval_of_top1_is_wilsons() -> None:
    """The two shares p with |share - p| = z sqrt(p (1 - p) / n) (Wilson 1927, equation 4)."""
    labels = np.arange(100) % 4
    logits = np.eye(4)[labels]
    logits[:13] = np.eye(4)[(labels[:13] + 1) % 4]
    values = score(logits, labels)
    for bound in (values["top1_low"], values["top1_high"]):
        assert abs(0.87 - bound) == pytest.approx(1.959964 * np.sqrt(bound * (1 - bound) / 100), rel=1e-5)
    assert values["top1_low"] < 0.87 == values["top1"] < values["top1_high"]


@pytest.mark.parametrize(("only_one", "only_other"), [(0, 0), (1, 1), (7, 0), (3, 9), (12, 2)])
def test_mcnemar_counts_the_ways_to_toss_coins(only_one: int, only_other: int) -> None:
    one = np.array([True] * only_one + [False] * only_other + [True] * 5 + [False] * 4)
    other = np.array([False] * only_one + [True] * only_other + [True] * 5 + [False] * 4)
    coins, most = only_one + only_other, max(only_one, only_other)
    as_far = sum(comb(coins, heads) for heads in range(coins + 1) if max(heads, coins - heads) >= most)
    assert mcnemar(one, other) == mcnemar(other, one) == pytest.approx(as_far / 2**coins)


@pytest.mark.parametrize(("lost", "gained", "images"), [(0.02, 0.01, 500), (0.05, 0.001, 300), (0.3, 0.1, 60)])
def test_the_interval_of_a_drop_covers_the_truth_as_often_as_it_says(lost: float, gained: float, images: int) -> None:
    drawn = np.random.default_rng(0).multinomial(images, [lost, gained, 1 - lost - gained], size=1000)
    intervals = [
        drop_interval(np.repeat([True, False, True], cells), np.repeat([False, True, True], cells)) for cells in drawn
    ]
    assert 0.93 <= np.mean([low <= lost - gained <= high for low, high in intervals]) <= 0.985


def test_equal_logits_go_to_the_lower_class() -> None:
    values = score(np.zeros((6, 6), np.float32), np.arange(6))
    assert (values["top1"], values["top5"]) == (pytest.approx(1 / 6), pytest.approx(5 / 6))


def test_top5_of_five_classes_says_nothing_and_is_left_out() -> None:
    assert set(score(np.eye(5), np.arange(5))) == {"top1", "top1_low", "top1_high", "loss"}


def test_accuracy_is_that_of_the_whole_test_set_and_its_difference_from_the_baselines(
    colours: np.ndarray,
    weights: list[np.ndarray],
    tests_of: Any,
    make_artifact: Any,
    make_candidate: MakeCandidate,
    tmp_path: Path,
) -> None:
    artifacts = [make_artifact(key, w) for key, w in zip(("baseline", "compressed"), weights, strict=True)]
    baseline, candidate = (make_candidate(Scores(), artifact) for artifact in artifacts)
    found = by_name(
        configured.measure("accuracy", batch_size=7).measure(
            Context(candidate, baseline, tests_of(artifacts[0]), tmp_path / "cache")
        )
    )

    guesses = [(colours @ w).argmax(1) for w in weights]
    rights = [int((guess == np.arange(IMAGES) % CLASSES).sum()) for guess in guesses]
    same = int((guesses[0] == guesses[1]).sum())
    assert 0 < same < IMAGES and rights[0] != rights[1]
    assert found["top1"] == rights[1] / IMAGES
    assert found["top1_drop"] == pytest.approx((rights[0] - rights[1]) / IMAGES)
    assert found["agreement"] == same / IMAGES
    assert found["loss"] == pytest.approx(
        log_loss(np.arange(IMAGES) % CLASSES, softmax(colours @ weights[1], 1)), rel=1e-5
    )
    assert found["test_seconds"] > 0
    right = [guess == np.arange(IMAGES) % CLASSES for guess in guesses]
    only = [int((right[i] & ~right[1 - i]).sum()) for i in (0, 1)]
    assert sum(only) >= 1
    assert found["top1_drop_low"] < found["top1_drop"] < found["top1_drop_high"]
    assert found["mcnemar_p"] == pytest.approx(min(1, 2 * binom.cdf(min(only), sum(only), 0.5)))


@pytest.mark.parametrize(
    "changes", [{"data": replace(SPEC, pretend=True)}, {"random_weights": True}], ids=["pretend", "random"]
)
def test_what_has_no_meaning_has_no_accuracy(
    changes: dict[str, Any], tests_of: Any, make_artifact: Any, make_context: Any
) -> None:
    artifact = make_artifact(**changes)
    context = make_context(Scores(), artifact=artifact)
    context.test_set = tests_of(artifact)
    assert context.test_set and not context.test_set.meaningful and tests_of(make_artifact("real")).meaningful
    assert (
        configured.measure("accuracy").measure(context) == []
        and context.notes["top1"] == "there are no real images, or no trained weights"
    )


def test_pretend_data_has_images_to_compare_engines_on(make_artifact: Any, tmp_path: Path) -> None:
    artifact = make_artifact(data=replace(SPEC, pretend=True))
    tests = EvaluationSet.test(artifact, tmp_path / "cache")
    assert tests and tests == EvaluationSet.test(artifact, tmp_path / "cache") and not tests.meaningful
    images = DecodedPart(tests.folder, tests.part).read(np.arange(64))
    assert images.shape == (64, 8, 8, 3) and images.dtype == np.uint8 and len(tests.classes) == 64
    assert images.min() < 5 and images.max() > 250 and len(np.unique(images, axis=0)) == 64


def test_without_the_decoded_images_there_is_no_test_set(make_artifact: Any, tmp_path: Path) -> None:
    assert EvaluationSet.test(make_artifact(), tmp_path / "cache") is None


def test_logits_are_computed_again_only_for_what_could_change_them(
    weights: list[np.ndarray], tests_of: Any, make_artifact: Any, make_candidate: MakeCandidate, tmp_path: Path
) -> None:
    log = tmp_path / "calls"

    def logits(artifact: Artifact, engine: Engine, batch: int = 1, passes: int = 25) -> tuple[np.ndarray, list[int]]:
        """The logits, and the batch sizes of the calls that the accuracy pass took."""
        log.unlink(missing_ok=True)
        found, seconds = make_candidate(engine, artifact, batch=batch).logits(
            tests_of(artifact), passes, tmp_path / "cache"
        )
        assert seconds > 0
        sizes = [int(line) for line in log.read_text().split()] if log.exists() else []
        return found, [size for size in sizes if size != batch]  # without the calls of loading

    one, other = make_artifact("one", weights[0]), make_artifact("other", weights[1])
    first, calls = logits(one, Scores(str(log)))
    assert calls == [25, 25] and first.shape == (IMAGES, CLASSES)
    again, calls = logits(one, Scores(str(log)), batch=8)
    assert calls == [] and np.array_equal(again, first)
    assert logits(one, Scores(str(log)), passes=20)[1] == [20, 20, 10]
    assert logits(other, Scores(str(log)))[1] == [25, 25]
    flipped, calls = logits(one, Scores(str(log), sign=-1))
    assert calls == [25, 25] and np.array_equal(flipped, -first)
    assert logits(replace(one, files={"model.pt2": "another"}), Scores(str(log)))[1] == [25, 25]


def test_logits_of_before_a_given_time_are_computed_anew_once(
    weights: list[np.ndarray], tests_of: Any, make_artifact: Any, make_candidate: MakeCandidate, tmp_path: Path
) -> None:
    log, artifact = tmp_path / "calls", make_artifact("one", weights[0])
    candidate = make_candidate(Scores(str(log)), artifact)

    def calls() -> int:
        log.unlink(missing_ok=True)
        candidate.logits(tests_of(artifact), 25, tmp_path / "cache")
        return log.read_text().split().count("25") if log.exists() else 0

    assert [calls(), calls()] == [2, 0]
    begun = tmp_path / "begun"
    begun.touch()
    candidate.since = begun.stat().st_mtime_ns
    assert [calls(), calls()] == [2, 0]


def test_an_interrupted_pass_leaves_no_logits(
    tests_of: Any, make_artifact: Any, make_candidate: MakeCandidate, tmp_path: Path
) -> None:
    artifact = make_artifact("bad", np.ones((2, CLASSES)))  # three channels do not fit
    with pytest.raises(ChildFailed, match="ValueError"):
        make_candidate(Scores(), artifact).logits(tests_of(artifact), 10, tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache").rglob("*") if "logits" in str(p) and p.is_file()]


def test_accuracy_on_the_validation_part_is_that_of_its_images_alone(
    images: np.ndarray, colours: np.ndarray, weights: list[np.ndarray], tests_of: Any, make_artifact: Any,
    make_candidate: MakeCandidate,
    tmp_path: Path,
) -> None:  # fmt: skip
    """The training images are those of the other tests backwards, and every third of them is validated on."""
    folder, chosen = tmp_path / "cache" / "data" / SPEC.cache_name, range(1, IMAGES, 3)
    write_part(folder, "train", images[::-1], np.arange(IMAGES) % CLASSES)
    (folder / SPEC.evaluation_file("validation", None)).write_text(json.dumps([*chosen]))
    artifacts = [make_artifact(key, w) for key, w in zip(("baseline", "compressed"), weights, strict=True)]
    baseline, candidate = (make_candidate(Scores(), artifact) for artifact in artifacts)
    context = Context(candidate, baseline, tests_of(artifacts[0]), tmp_path / "cache")
    found = {
        part: by_name(configured.measure("accuracy", part=part, batch_size=7).measure(context))
        for part in ("test", "validation", "both")
    }

    rights = [np.mean([(colours[::-1][i] @ w).argmax() == i % CLASSES for i in chosen]) for w in weights]
    assert rights[0] != rights[1] and found["validation"]["val_top1"] == rights[1]
    assert found["validation"]["val_top1_drop"] == pytest.approx(rights[0] - rights[1])
    assert set(found["validation"]) == {f"val_{name}" for name in found["test"]} - {"val_test_seconds"}
    assert found["both"] == found["test"] | found["validation"]


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(UserError, match="measure.accuracy.part=train is unknown. Known: both, test, validation"):
        configured.measure("accuracy", part="train")
