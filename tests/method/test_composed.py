"""Random networks: each method's graph and each engine compute what the network does, or one sentence says why not.

QEXP_FUZZ=300 in the environment composes as many networks instead of a few, and tells all faults and refusals.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from qexp.data.random import RandomData
from qexp.method.artifacts import make_artifact
from qexp.model.base import bake
from qexp.types import Unsupported, UserError
from tests import configured
from tests.engine.support import BATCH, engine_named, error, graph_logits, run
from tests.patterns.composed import CHANGING, IMAGES, NESTED, TOKENS, Composed

pytestmark = pytest.mark.integration

QUICK: dict[str, Any] = {"recipe": {"epochs": 0}}
# Methods, their options, and the least decibels of the logits over the error of the graph. Pruning changes the network
# as it pleases, so that there only the engine is compared with the graph.
METHODS: dict[str, tuple[dict[str, Any], float | None]] = {
    "static": ({}, 6),
    "none": ({}, 80),
    "half": ({}, 20),
    "dynamic": ({}, 6),
    "mixed": ({}, 3),
    "reconstruct": ({"iterations": 2}, 6),
    "qat": ({"recipe": {"epochs": 1}}, None),
    "prune": (QUICK, None),
    "cluster": (QUICK, None),
    "low_rank": ({**QUICK, "ratio": 1.2}, None),
    "prune_channels": ({**QUICK, "epochs_between": 0}, None),
}
ENGINES = ("eager", "onnxruntime", "openvino", "executorch")
SLACK = {
    "none": 1e-3,
    "half": 0.05,
    "dynamic": 0.1,
}  # of an engine's logits from the graph's; integers may differ by steps
STEPS = 6 / 127


@dataclass(frozen=True)
class Case:
    """A network, a method and an engine."""

    images: tuple[str, ...]
    tokens: tuple[str, ...] | None
    ending: str
    method: str
    engine: str

    def network(self, data: RandomData) -> nn.Module:
        """The network in eval mode, with batch norms that have seen images."""
        torch.manual_seed(0)
        made = Composed(self.images, self.tokens, self.ending, 3, 16, data.spec.num_classes).train()
        with torch.no_grad():
            for _ in range(5):
                made(data.calibration()[:])
        return bake(made.eval())


def cases() -> st.SearchStrategy[Case]:
    nested = st.sampled_from([start + name for start in NESTED for name in IMAGES])
    images = st.lists(
        st.sampled_from(sorted(IMAGES)) | nested | st.sampled_from(sorted(CHANGING)), min_size=1, max_size=4
    )
    tokens = st.lists(st.sampled_from([*TOKENS, *(f"residual {name}" for name in TOKENS)]), min_size=1, max_size=3)
    return st.builds(
        Case, images.map(tuple), st.none() | tokens.map(tuple), st.sampled_from(["mean", "view", "first", "max"]),
        st.sampled_from(["static"] * 6 + list(METHODS)), st.sampled_from(ENGINES),
    )  # fmt: skip


def refusal(case: Case, data: RandomData, folder: Path) -> str:
    """Compress and run a network.

    Returns:
        The sentence with which it was refused, or nothing.

    Raises:
        AssertionError: The graph or the engine computes something else.
    """
    options, least_db = METHODS[case.method]
    network, engine = case.network(data), engine_named(case.engine)
    x = data.calibration()[: 4 * BATCH]
    try:
        method = configured.method(case.method, **options)
        made = make_artifact(method, network, data, engine.spec, {"model": "composed", "weights": "random"}, folder)
        made = engine.lower(made, BATCH, 1)
    except (UserError, Unsupported) as refused:
        return str(refused)
    if made.graph.endswith(".pt2"):
        expected = run(engine_named("eager"), made, x.numpy()) if made.coded else graph_logits(made, x.numpy())
        with torch.no_grad():
            exact = network(x).double().numpy()
        assert np.isfinite(expected).all()
        noise = np.square(expected - exact).sum()
        db = 10 * np.log10(np.square(exact - exact.mean()).sum() / max(noise, 1e-30))
        assert least_db is None or db > least_db, f"the graph is {db:.1f} dB from the network"
    else:
        expected = exact = network(x).detach().numpy()
    different = error(run(engine, made, x.numpy()), expected)
    assert different < SLACK.get(case.method, STEPS), f"{case.engine} differs from the graph by {different:.3f}"
    return ""


# What composing 300 networks found, and what was mended since.
FOUND = {
    "a 1-d convolution in floating point whose result becomes integers": Case(
        ("scaled residual conv bn", "gelu", "average pool", "gelu"), ("positions", "token conv"), "view", "static",
        "executorch",
    ),
}  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("case", FOUND.values(), ids=FOUND)
def test_networks_that_once_went_wrong(data: RandomData, tmp_path: Path, case: Case) -> None:
    assert refusal(case, data, tmp_path) == ""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RandomData:
    return configured.pretend_data(tmp_path_factory.mktemp("images"))


def test_random_networks(data: RandomData, tmp_path_factory: pytest.TempPathFactory) -> None:
    number, faults, refusals = int(os.environ.get("QEXP_FUZZ", "4")), [], Counter[str]()

    @settings(
        max_examples=number, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(cases())
    def check(case: Case) -> None:
        try:
            refusals[refusal(case, data, tmp_path_factory.mktemp("artifacts"))] += 1
        except Exception as fault:  # every fault is told, of whatever kind
            faults.append(f"{case}\n    {type(fault).__name__}: {str(fault)[:400]}")
            print(faults[-1], flush=True)

    check()
    for sentence, times in refusals.most_common():
        print(times, sentence or "as it should be", flush=True)
    assert not faults, "\n".join(faults)
