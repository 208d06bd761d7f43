"""Networks that return several things give their logits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from qexp.model.outputs import network_for
from qexp.types import DataSpec, Preprocessing, UserError

DATA = DataSpec("digits", tuple("0123456789"), Preprocessing(1, (28, 28), (0.1,), (0.3,)), "")


def network(data: DataSpec = DATA, **model: Any) -> Any:
    torch.manual_seed(0)
    return network_for(OmegaConf.create({"_target_": "tests.patterns.weights.Simple", "id": "net", **model}), data)


@pytest.mark.parametrize("answer", ["tuple", "dict"])
def test_the_one_that_fits_is_found(answer: str) -> None:
    x, plain, chosen = torch.randn(2, 1, 28, 28), network().eval(), network(answer=answer).eval()
    assert torch.equal(chosen(x), plain(x)) and torch.equal(copy.deepcopy(chosen)(x), plain(x))
    assert chosen.state_dict().keys() == plain.state_dict().keys() and type(chosen).__name__ == "Simple"


def test_the_one_that_is_named_is_taken() -> None:
    x, plain = torch.randn(2, 1, 28, 28), network().eval()
    assert torch.equal(network(answer="tuple", output=0).eval()(x), plain(x))
    with pytest.raises(UserError, match=r"gives \(2, 32\) for 2 images"):
        network(answer="tuple", output=1)
    with pytest.raises(UserError, match=r"model.output=scores: .* no such output, but logits: \(2, 10\)"):
        network(answer="dict", output="scores")


def test_none_that_fits_is_an_error() -> None:
    with pytest.raises(UserError, match=r"0: \(2, 13\), 1: \(2, 32\) for 2 images, none of which has the shape"):
        network(answer="tuple", extra=3)


def test_logits_of_auxiliary_heads_in_training_only_are_no_matter() -> None:
    assert network(aux=True).eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
