"""Graphs that torch.onnx does not translate by itself give the logits of torch in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from qexp.onnx_file import write_onnx
from qexp.types import UserError


class Attention(nn.Module):
    """Attention within windows, as Hiera has it, or between images alone: x[B,3,8,8] -> logits[B,12]."""

    def __init__(self, dimensions: int, mask: str, scale: float | None):
        super().__init__()
        self.dimensions, self.mask, self.scale = dimensions, mask, scale

    def forward(self, x: Tensor) -> Tensor:
        windows = x.reshape(-1, 3, 2, 8, 4) if self.dimensions == 5 else x.reshape(-1, 16, 12)
        size = windows.shape[-2]
        near = (torch.arange(size)[:, None] - torch.arange(size)).abs() < 3
        mask = {"none": None, "bool": near, "float": -near.float()}[self.mask]
        found = scaled_dot_product_attention(windows, 2 * windows, windows.flip(-1), mask, scale=self.scale)
        return found.reshape(x.shape[0], 16, 12).mean(1)


def in_onnxruntime(network: nn.Module, x: Tensor, folder: Path) -> np.ndarray:
    """The network's logits[B,K] of x[B,3,8,8] in ONNX Runtime."""
    shapes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(network, (x[:2],), dynamic_shapes=shapes), folder / "m.pt2")
    write_onnx(folder / "m.pt2", (3, 8, 8), folder / "m.onnx")
    session = onnxruntime.InferenceSession(folder / "m.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x.numpy()})[0]


@pytest.mark.parametrize(("dimensions", "mask", "scale"), [(5, "none", None), (5, "bool", 0.7), (5, "float", None),
                                                           (3, "bool", None)])  # fmt: skip
def test_attention_of_any_number_of_dimensions(tmp_path: Path, dimensions: int, mask: str, scale: float | None) -> None:
    network, x = Attention(dimensions, mask, scale), torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = in_onnxruntime(network, x, tmp_path)
    np.testing.assert_allclose(found, network.double()(x.double()).numpy(), rtol=1e-5, atol=1e-6)


class Heads(nn.Module):
    """Attention of three heads with a learned bias, whose result torch views in the memory order that it has there."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.arange(16.0))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, 16, 3, 4).transpose(1, 2)
        mask = self.bias.expand(1, 3, 16, 16)
        return scaled_dot_product_attention(tokens, tokens, tokens, mask).transpose(1, 2).reshape(-1, 16, 12).mean(1)


def test_views_in_the_memory_order_of_a_kernel(tmp_path: Path) -> None:
    network, x = Heads(), torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(in_onnxruntime(network, x, tmp_path), network(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_translated_is_told_without_advice_to_developers(tmp_path: Path) -> None:
    class Special(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x).mean((2, 3))

    torch.export.save(torch.export.export(Special(), (torch.zeros(2, 3, 8, 8),)), tmp_path / "m.pt2")
    with pytest.raises(UserError, match="torch.onnx cannot export this network: .*bessel_j0") as raised:
        write_onnx(tmp_path / "m.pt2", (3, 8, 8), tmp_path / "m.onnx")
    assert "\x1b" not in str(raised.value) and "Next steps" not in str(raised.value)
