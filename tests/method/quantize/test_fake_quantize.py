"""The quantizer of a tensor: what it lets through, how it rounds, its gradients; and weights packed into bytes."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

from qexp.artifact import EngineSpec
from qexp.data.random import RandomData
from qexp.method.graph import folded_graph
from qexp.method.quantize.fake_quantize import FakeQuantize, PackedWeight, WeightFakeQuantize, fix_all, quantizers
from qexp.method.quantize.numerics import Grid
from qexp.method.quantize.observers import MinMax
from qexp.types import UserError
from tests import configured

UINT4, INT4, INT8 = Grid(0, 15, False), Grid(-8, 7, True), Grid(-128, 127, False)
SHAPES: dict[str, dict[str, Any]] = {
    "tensor": {}, "channel": {"axis": 0}, "second_axis": {"axis": 1}, "groups": {"axis": 0, "group": 4},
    "uneven": {"axis": 0, "group": 5},
}  # fmt: skip
ALL_SHAPES = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def quantizer(grid: Grid, kind: type[FakeQuantize] = FakeQuantize, **shape: Any) -> FakeQuantize:
    return kind(MinMax, grid, dtype=torch.int8, **shape)


def fixed(grid: Grid, seen: Tensor, **shape: Any) -> FakeQuantize:
    made = quantizer(grid, **shape)
    made(seen)
    made.fix()
    return made


def spread(values: Tensor, like: np.ndarray, axis: int | None = None, group: int | None = None) -> np.ndarray:
    """One value per row, at each element of that row."""
    numbers = values.detach().double().numpy()
    if axis is None:
        return np.full(like.shape, numbers[0])
    channels, size = like.shape[axis], like.size // like.shape[axis]
    groups = -(-size // (group or size))
    per_element = np.repeat(numbers.reshape(channels, groups), group or size, 1)[:, :size]
    return np.moveaxis(per_element.reshape(channels, *np.moveaxis(like, axis, 0).shape[1:]), 0, axis)


def test_everything_passes_until_the_range_is_fixed() -> None:
    made = quantizer(UINT4)
    for x in (torch.tensor([-1.0, 0.3]), torch.tensor([0.1, 2.0])):
        assert made(x) is x
    made.fix()
    assert made.scale.item() == pytest.approx(3 / 15) and made.zero_point.item() == 5
    assert made(torch.tensor([5.0, 0.29, -9.0])).tolist() == pytest.approx([2.0, 0.2, -1.0])
    made.fix()
    assert made.scale.item() == pytest.approx(3 / 15), "what came later changes nothing"
    made.enabled = False
    assert made(torch.tensor([0.123])).item() == np.float32(0.123)


def test_of_a_weight_only_the_first_call_is_observed() -> None:
    made = quantizer(INT4, WeightFakeQuantize)
    made(torch.tensor([7.0, -1.0]))
    made(torch.tensor([700.0]))
    made.fix()
    assert made.scale.item() == pytest.approx(1)


@ALL_SHAPES
@pytest.mark.parametrize("grid", [UINT4, INT4, INT8], ids=str)
def test_values_are_rounded_to_the_grid(grid: Grid, shape: dict[str, Any]) -> None:
    random = torch.Generator().manual_seed(0)
    seen, x = torch.randn(3, 7, 2, generator=random), 1.2 * torch.randn(3, 7, 2, generator=random)
    made = fixed(grid, seen, **shape)
    values = x.double().numpy()
    scale, zero_point = (spread(v, values, **shape) for v in (made.scale, made.zero_point))
    integers = np.clip(np.rint(values / scale) + zero_point, grid.quant_min, grid.quant_max)
    np.testing.assert_allclose(made(x).numpy(), (integers - zero_point) * scale, rtol=1e-6, atol=1e-7)
    assert (integers == grid.quant_max).any() and len(np.unique(scale)) == len(made.scale)


@ALL_SHAPES
@pytest.mark.parametrize("grid", [UINT4, INT4, INT8], ids=str)
def test_gradients_are_those_of_lsq(grid: Grid, shape: dict[str, Any]) -> None:
    random = torch.Generator().manual_seed(1)
    made = fixed(grid, torch.randn(3, 7, 2, generator=random), **shape)
    made.learn_scale()
    made.gradient_factor = 0.37
    x = (1.5 * torch.randn(3, 7, 2, generator=random)).requires_grad_()
    sensitivity = torch.randn(3, 7, 2, generator=random)
    made(x).backward(sensitivity)
    assert x.grad is not None and made.scale.grad is not None

    values, upstream = x.detach().double().numpy(), sensitivity.double().numpy()
    scale, zero_point = (spread(v, values, **shape) for v in (made.scale, made.zero_point))
    v = values / scale
    below, above = v < grid.quant_min - zero_point, v > grid.quant_max - zero_point
    slope = np.select(
        [below, above], [grid.quant_min - zero_point, grid.quant_max - zero_point], np.rint(v) - v
    )  # equation 3
    by_row = 0.37 * upstream * slope
    expected = [
        by_row[spread(torch.arange(len(made.scale)), values, **shape) == row].sum() for row in range(len(made.scale))
    ]
    np.testing.assert_allclose(made.scale.grad.numpy(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(x.grad.numpy(), np.where(below | above, 0, upstream), rtol=1e-6)
    assert (below | above).any() and not (below | above).all()


@ALL_SHAPES
def test_the_slope_of_clipped_values_is_that_of_finite_differences(shape: dict[str, Any]) -> None:
    random = torch.Generator().manual_seed(2)
    made = fixed(UINT4, torch.randn(3, 7, 2, generator=random), **shape)
    made.learn_scale()
    x = torch.where(torch.rand(3, 7, 2, generator=random) < 0.5, -50.0, 50.0)
    made(x).square().sum().backward()
    assert made.scale.grad is not None
    for row in range(len(made.scale)):
        step = 1e-3 * made.scale[row].item()
        sums = []
        for sign in (1, -1):
            with torch.no_grad():
                made.scale[row] += sign * step
                sums.append(made(x).double().square().sum().item())
                made.scale[row] -= sign * step
        assert made.scale.grad[row].item() == pytest.approx((sums[0] - sums[1]) / (2 * step), rel=1e-2)


def test_a_scale_learns_until_it_is_kept() -> None:
    made = fixed(INT4, torch.tensor([7.0]))
    assert list(made.parameters()) == [] and "scale" in dict(made.named_buffers())
    made.learn_scale()
    made.learn_scale()
    (scale,) = made.parameters()
    with torch.no_grad():
        scale.fill_(-2.0)  # a step too far
    assert made(torch.tensor([3.9])).item() == 4, "scales are positive"
    made.keep_scale()
    assert list(made.parameters()) == [] and made.state_dict()["scale"].item() == 2


@pytest.mark.parametrize("symmetric", [True, False])
@ALL_SHAPES
@pytest.mark.parametrize("bits", range(2, 9))
def test_a_packed_weight_is_the_rounded_weight(bits: int, shape: dict[str, Any], symmetric: bool) -> None:
    weight = torch.randn(3, 7, 2, generator=torch.Generator().manual_seed(bits)) + 0.2
    grid = Grid.of(bits, True, symmetric)
    made = fixed(grid, weight, **shape)
    packed = PackedWeight.of(weight, made)
    values = weight.double().numpy()
    scale, zero_point = (spread(v, values, **shape) for v in (made.scale, made.zero_point))
    integers = np.clip(np.rint(values / scale) + zero_point, grid.quant_min, grid.quant_max)
    expected = (integers - zero_point).astype(np.float32) * scale.astype(np.float32)
    np.testing.assert_array_equal(packed().numpy(), expected)
    np.testing.assert_allclose(packed().numpy(), made(weight).numpy(), rtol=1e-6)
    elements = len(made.scale) * shape["group"] if "group" in shape else 42  # groups are filled up
    assert packed.packed.dtype == torch.uint8 and packed.packed.numel() == -(-elements // 8) * bits
    assert {name for name, _ in packed.named_buffers()} == {"packed", "scale", "zero_point"} and not list(
        packed.parameters()
    )


class OneUnusedConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)).mean((2, 3))


def test_tensors_that_were_never_seen_are_named(pretend_data: RandomData) -> None:
    network = OneUnusedConvolution().eval()
    folded = folded_graph(network, pretend_data)
    prepared = prepare_pt2e(folded, configured.method("static").placement(folded, EngineSpec()))
    with torch.no_grad():
        prepared(pretend_data.calibration()[:])
    made = quantizers(prepared)
    blind = next(node for node in prepared.graph.nodes if node.op == "call_module" and str(node.args[0]) == "conv2d")
    made[str(blind.target)].seen = False
    with pytest.raises(UserError, match=r"would mean nothing: conv2d\. Raise data.calibration_images"):
        fix_all(prepared)
    assert not any(one.fixed for one in made.values())
    made[str(blind.target)].seen = True
    fix_all(prepared)
    assert len(made) > 4 and all(one.fixed and one.scale is not None for one in made.values())


def test_options_arrive_where_conversion_reads_them() -> None:
    make = partial(FakeQuantize.with_args, grid=INT4, observe=MinMax)
    made = make(axis=0)(dtype=torch.int8)
    assert (made.quant_min, made.quant_max, made.ch_axis, made.qscheme) == (-8, 7, 0, torch.per_channel_symmetric)
    assert make()(dtype=torch.int8).qscheme == torch.per_tensor_symmetric
