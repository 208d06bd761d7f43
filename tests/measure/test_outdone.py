"""A candidate that quantises by itself does not win by time if it loses more accuracy than the graph does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from qexp.artifact import Artifact, EngineSpec
from qexp.data.decoded import write_part
from qexp.jobs.comparison import outdone
from qexp.measure.accuracy import Accuracy
from qexp.measure.candidate import Candidate
from tests.measure.conftest import QUANTIZED, SPEC
from tests.measure.fake_engines import CLASSES, Scores

pytestmark = pytest.mark.integration

IMAGES = 400
RNG = np.random.default_rng(1)
WEIGHTS = RNG.standard_normal((3, CLASSES))


@pytest.fixture
def judged(
    make_artifact: Callable[..., Artifact], make_candidate: Callable[..., Candidate], tmp_path: Path
) -> Callable[..., str]:
    """Compares one that quantises by itself, which answers `wrong` of the images wrongly, with the graph."""

    def judge(wrong: int, points: float, has_images: bool = True, trained: bool = True) -> str:
        graph = make_artifact("graph", WEIGHTS, layers=QUANTIZED, random_weights=not trained)
        spec = EngineSpec(formats=("torchscript",))
        itself = make_artifact("itself", WEIGHTS, engine_spec=spec, layers=QUANTIZED, random_weights=not trained)
        images = (RNG.integers(256, size=(IMAGES, 1, 1, 3)) + np.zeros((1, 8, 8, 1))).astype(np.uint8)
        how = SPEC.preprocessing
        labels = (((images[:, 0, 0] / 255.0 - how.mean) / how.std) @ WEIGHTS).argmax(1)
        folder = tmp_path / "cache" / "data" / SPEC.cache_name
        folder.mkdir(parents=True)
        # The engine of the one candidate gives the first class more; its labels are wrong where that changes the class.
        write_part(folder, "train", images, labels)
        if has_images:
            (folder / SPEC.evaluation_file("validation", 300)).write_text(json.dumps([*range(IMAGES)]))
        margin = np.sort(labels_margin(images))
        bias = float(margin[wrong] + margin[wrong - 1]) / 2 if wrong else 0.0
        candidates = {"quick": make_candidate(Scores(bias=bias), itself), "graph": make_candidate(Scores(), graph)}
        config = OmegaConf.create({"outputs": str(tmp_path), "engine": {"accept_points": points, "accept_images": 300}})
        return outdone(config, candidates, "quick", Accuracy("test", None, 50), {})

    return judge


def labels_margin(images: np.ndarray) -> np.ndarray:
    """By how much the first class is behind the best in each image[N,H,W,C] that is of another class."""
    how = SPEC.preprocessing
    logits = ((images[:, 0, 0] / 255.0 - how.mean) / how.std) @ WEIGHTS
    behind = logits.max(1) - logits[:, 0]
    return behind[behind > 0]


@pytest.mark.parametrize(
    ("wrong", "points", "worse"),
    [
        (0, 0.5, False),  # as good
        (1, 0.5, False),  # 0.25 points, p = 1
        (3, 0.5, True),  # 0.75 points
        (3, 1.0, False),  # p = 0.25
        (8, 5.0, True),  # 2 points of 5, but p = 2 / 2^8
    ],
)
def test_it_may_lose_some_points_but_not_significantly(
    wrong: int, points: float, worse: bool, judged: Callable[..., str]
) -> None:
    reason = judged(wrong, points)
    assert bool(reason) == worse
    if worse:
        right = f"{1 - wrong / IMAGES:.2%} of {IMAGES} validation images right, and the graph on scores gets 100.00%"
        assert right in reason and f"p = {2 / 2**wrong:.2g}" in reason


@pytest.mark.parametrize("lack", [{"has_images": False}, {"trained": False}])
def test_without_images_or_weights_there_is_nothing_to_compare(
    lack: dict[str, bool], judged: Callable[..., str]
) -> None:
    assert judged(8, 0.0, **lack) == ""
