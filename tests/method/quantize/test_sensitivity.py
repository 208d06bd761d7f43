"""What rounding one layer does to the answers, against NumPy in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

from qexp.artifact import EngineSpec
from qexp.data.random import RandomData
from qexp.method.bits import BitWidths
from qexp.method.quantize.sensitivity import EachLayer, divergence, roundings, sensitivities
from tests import configured

pytestmark = pytest.mark.integration  # compresses whole networks
ENDS = ("stem.0", "classifier")


def rounded(values: np.ndarray, low: int, high: int, scale: np.ndarray | float, zero_point: int = 0) -> np.ndarray:
    """Jacob et al., 2018, equation 1, and back."""
    return (np.clip(np.rint(values / scale) + zero_point, low, high) - zero_point) * scale


def kl(exact: np.ndarray, other: np.ndarray) -> float:
    """Mean of sum p log(p / q), with p and q written out."""
    p, q = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True) for logits in (exact, other))
    return float((p * np.log(p / q)).sum(1).mean())


def decibels(exact: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10((exact**2).sum() / ((exact - other) ** 2).sum()))


def test_divergence_is_that_of_the_predictions() -> None:
    exact, other = (np.random.default_rng(seed).normal(size=(20, 7)) for seed in (0, 1))
    assert divergence(torch.tensor(exact), torch.tensor(other)) == pytest.approx(kl(exact, other), rel=1e-12)
    assert divergence(torch.tensor(exact), torch.tensor(exact + 3)) == pytest.approx(0, abs=1e-15)


class TwoLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3 * 16 * 16, 12), nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x.flatten(1)).relu())


@pytest.mark.parametrize("bits", [2, 4])
def test_only_the_weights_and_the_input_of_the_layer_are_rounded(bits: int, pretend_data: RandomData) -> None:
    torch.manual_seed(0)
    network = TwoLinear().eval()
    widths = {"first": [], "second": [BitWidths(8, 8), BitWidths(bits, bits)]}
    *_, found = sensitivities(
        configured.method("static", observer="minmax", bits=4), network, pretend_data, EngineSpec(), widths, 24
    )

    (w1, b1), (w2, b2) = (
        [p.detach().double().numpy() for p in layer.parameters()] for layer in (network.first, network.second)
    )
    x = pretend_data.calibration()[:].double().numpy()
    hidden = np.maximum(x.reshape(len(x), -1) @ w1.T + b1, 0)
    step = hidden.max() / (2**bits - 1)  # over all 32 images, though 24 are answered
    largest = 2 ** (bits - 1) - 1
    # Of the symmetric range -2^(b-1)..2^(b-1)-1 either end may be the one that decides the scale.
    w_step = np.maximum(w2.max(1) / largest, -w2.min(1) / (largest + 1))[:, None]
    answer = rounded(hidden, 0, 2**bits - 1, step) @ rounded(w2, -largest - 1, largest, w_step).T + b2
    exact = hidden @ w2.T + b2
    assert (found.layer, found.bits) == ("second", BitWidths(bits, bits))
    assert found.loss_change == pytest.approx(kl(exact[:24], answer[:24]), rel=1e-3)
    assert found.sqnr_db == pytest.approx(decibels(exact[:24], answer[:24]), abs=0.01)


@pytest.mark.parametrize("layer", ["blocks.0.body.0", "blocks.1.body.3", "blocks.1.shortcut.0"])
def test_a_layer_amid_residual_blocks(layer: str, pretend_data: RandomData, network: nn.Module) -> None:
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    only_weights = BitWidths(3, 32)
    widths = {name: [only_weights] if name == layer else [] for name in names}
    (found,) = sensitivities(configured.method("static", bits=4), network, pretend_data, EngineSpec(), widths, 32)

    changed = copy.deepcopy(network)
    parent, _, last = layer.rpartition(".")
    norm = changed.get_submodule(f"{parent}.{int(last) + 1}")
    weight = changed.get_submodule(layer).weight.data
    factor = (
        (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach().double().numpy()[:, None]
    )  # folded before rounding
    folded = weight.double().numpy().reshape(len(weight), -1) * factor
    step = np.maximum(folded.max(1) / 3, -folded.min(1) / 4)[:, None]
    weight.copy_(torch.tensor(rounded(folded, -4, 3, step) / factor).reshape(weight.shape))
    with torch.no_grad():
        exact, answer = (net(pretend_data.calibration()[:]).double().numpy() for net in (network, changed))
    assert found.loss_change == pytest.approx(kl(exact, answer), rel=1e-3)
    assert found.sqnr_db == pytest.approx(decibels(exact, answer), abs=0.01)


def test_layers_that_read_one_tensor_have_a_quantizer_each(pretend_data: RandomData, network: nn.Module) -> None:
    method = configured.method("static", bits=4)
    spec = method.spec(BitWidths(8, 8), EngineSpec())
    found = roundings(prepare_pt2e(method.folded(network, pretend_data), EachLayer(spec)))
    assert "blocks.1.shortcut.0" in found and len(found) == 7
    assert len({id(q) for rounding in found.values() for q in (*rounding.weights, *rounding.activations)}) == 14
