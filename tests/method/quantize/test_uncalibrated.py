"""A conversion without calibration is refused, and what it would have cost is what torch itself computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from qexp.artifact import EngineSpec
from qexp.data.random import RandomData
from qexp.types import UserError
from tests import configured


class OneLayer(nn.Module):
    """x[B,3,16,16] -> logits[B,2], whose only activations are the input and the result."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(3 * 16 * 16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(x.flatten(1))


def test_the_accuracy_it_would_have_had(pretend_data: RandomData, tmp_path: Path) -> None:
    data, spec = pretend_data, pretend_data.open()
    torch.manual_seed(0)
    network = OneLayer(spec.num_classes).eval()
    nn.init.normal_(network.classifier.weight, std=0.5)
    with pytest.raises(UserError) as refused:
        configured.method("uncalibrated", first_last_bits=8).apply(network, data, EngineSpec(), tmp_path)
    chosen = data.validation_indices
    images = (data.pixels("train", chosen) / 255 - np.array(spec.preprocessing.mean)) / np.array(spec.preprocessing.std)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).reshape(len(chosen), -1).astype(np.float32))
    weight = network.classifier.weight.detach()
    scale = weight.abs().amax(1) / 127
    rounded = torch.fake_quantize_per_channel_affine(
        weight, scale, torch.zeros(len(scale), dtype=torch.int32), 0, -127, 127
    )
    uint8 = x.round().clamp(0, 255)  # scale 1, zero point 0
    logits = (uint8 @ rounded.T + network.classifier.bias.detach()).round().clamp(0, 255)
    labels = torch.from_numpy(data.splits["train"].labels[chosen])
    right = [float((scores.argmax(1) == labels).double().mean()) for scores in (logits, network(x))]
    assert f"gets {right[0]:.4f} of the {len(chosen)} validation images right, and {right[1]:.4f} in fp32" in str(
        refused.value
    )
    assert "have scale 1 and zero point 0" in str(refused.value)
