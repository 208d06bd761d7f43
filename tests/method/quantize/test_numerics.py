"""The arithmetic of quantisation against float64 formulas, ONNX Runtime's operators and NumPy's packing of bits."""

from __future__ import annotations

import math

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor

from qexp.method.quantize.numerics import (
    Grid,
    as_rows,
    dequantize,
    fake_quantize,
    from_rows,
    pack,
    quantize,
    scale_and_zero_point,
    sqnr_db,
    unpack,
)

UINT8, INT8, NARROW = Grid(0, 255, False), Grid(-128, 127, False), Grid(-127, 127, True)
GRIDS = [
    UINT8, INT8, NARROW, Grid(-128, 127, True), Grid(0, 255, True), Grid(0, 15, False), Grid(-8, 7, True),
    Grid(-2, 1, True),
    Grid(0, 3, False), Grid(-63, 63, False),
]  # fmt: skip
SEVERAL = pytest.mark.parametrize("grid", GRIDS, ids=str)


def formula(low: np.ndarray, high: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point by Jacob et al., 2018.

    Affine: S = (high - low) / levels and Z = round(qmin - low / S). Symmetric: the side that needs the larger S counts.
    """
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    if not grid.symmetric:
        scale = (high - low) / (grid.quant_max - grid.quant_min)
        return scale, np.clip(np.rint(grid.quant_min - low / scale), grid.quant_min, grid.quant_max)
    scale = high / grid.quant_max
    if grid.quant_min < 0:
        scale = np.maximum(scale, np.abs(low) / abs(grid.quant_min))
    return scale, np.zeros_like(scale)


@pytest.mark.parametrize(
    ("bits", "signed", "narrow", "integers"),
    [
        (8, False, False, (0, 255)), (8, True, False, (-128, 127)), (8, True, True, (-127, 127)),
        (4, True, False, (-8, 7)), (2, True, False, (-2, 1)), (2, False, False, (0, 3)), (5, False, False, (0, 31)),
    ],
)  # fmt: skip
def test_a_grid_holds_all_integers_of_its_bits(
    bits: int, signed: bool, narrow: bool, integers: tuple[int, int]
) -> None:
    grid = Grid.of(bits, signed, symmetric=True, narrow=narrow)
    assert (grid.quant_min, grid.quant_max) == integers and grid.bits == bits


@SEVERAL
def test_scale_and_zero_point_are_those_of_the_formula(grid: Grid) -> None:
    random = np.random.default_rng(0)
    low, high = random.normal(-1, 2, 200).astype(np.float32), random.normal(2, 2, 200).astype(np.float32)
    low, high = np.minimum(low, high), np.maximum(low, high) + 0.1
    if grid.quant_min == 0 and grid.symmetric:
        high = np.abs(high) + 0.1
    scale, zero_point = scale_and_zero_point(torch.from_numpy(low), torch.from_numpy(high), grid)
    expected_scale, expected_zero_point = formula(low.astype(np.float64), high.astype(np.float64), grid)
    assert scale.dtype == torch.float32 and zero_point.dtype == torch.int32
    np.testing.assert_allclose(scale.numpy(), expected_scale, rtol=1e-7)
    np.testing.assert_array_equal(zero_point.numpy(), expected_zero_point)


def test_an_empty_range_has_a_scale() -> None:
    scale, zero_point = scale_and_zero_point(torch.zeros(1), torch.zeros(1), UINT8)
    assert scale.item() == np.finfo(np.float32).eps and fake_quantize(
        torch.zeros(3), scale, zero_point, UINT8
    ).tolist() == [0, 0, 0]


@SEVERAL
def test_scales_that_are_powers_of_two_are_the_least_that_cover_the_range(grid: Grid) -> None:
    shifted = Grid(grid.quant_min, grid.quant_max, grid.symmetric, power_of_two=True)
    random = np.random.default_rng(1)
    low, high = -random.uniform(0, 4, 200).astype(np.float32), 10 ** random.uniform(-4, 4, 200).astype(np.float32)
    low[:3], high[:3] = 0, [127, 255, 0.5]
    mantissa, _ = np.frexp(
        scale := scale_and_zero_point(torch.from_numpy(low), torch.from_numpy(high), shifted)[0].numpy()
    )
    needed, _ = formula(low.astype(np.float64), high.astype(np.float64), grid)
    assert set(mantissa) == {0.5}
    assert (scale >= needed * (1 - 1e-6)).all() and (scale / 2 < needed).all()


def onnx_round(
    x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, kind: int, axis: int | None
) -> list[np.ndarray]:
    """[integers and] values of ONNX Runtime's QuantizeLinear and DequantizeLinear."""
    readable = kind in (TensorProto.UINT8, TensorProto.INT8)  # four bits do not come out as NumPy arrays
    shape = [] if axis is None else list(scale.shape)
    constants = [
        helper.make_tensor("scale", TensorProto.FLOAT, shape, scale.ravel()),
        helper.make_tensor("zero", kind, shape, zero_point.ravel().astype(int)),
    ]
    along = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], **along),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], **along),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape)]
    if readable:
        outputs.insert(0, helper.make_tensor_value_info("q", kind, x.shape))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)], outputs, constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize(
    ("kind", "grid"),
    [
        (TensorProto.UINT8, UINT8),
        (TensorProto.INT8, INT8),
        (TensorProto.UINT4, Grid(0, 15, False)),
        (TensorProto.INT4, Grid(-8, 7, False)),
    ],
)
def test_rounding_is_that_of_onnxruntime(kind: int, grid: Grid, axis: int | None) -> None:
    random = np.random.default_rng(2)
    x = random.normal(0, 4, (4, 6, 5)).astype(np.float32)
    count = 1 if axis is None else x.shape[axis]
    scale = (random.uniform(0.5, 4, count) / (grid.quant_max - grid.quant_min)).astype(np.float32)
    zero_point = random.integers(grid.quant_min, grid.quant_max + 1, count)
    scale[0], zero_point[0] = (
        2.0**-5,
        (grid.quant_min + grid.quant_max) // 2,
    )  # exact ties, which go to the even integer
    np.moveaxis(x, axis or 0, 0)[0] = (
        random.integers(-200, 200, np.moveaxis(x, axis or 0, 0)[0].shape) + 0.5
    ) * 2.0**-5
    rows = as_rows(torch.from_numpy(x), axis)
    by_row = torch.from_numpy(scale)[:, None], torch.from_numpy(zero_point).int()[:, None]
    integers = quantize(rows, *by_row, grid)
    *expected_integers, expected = onnx_round(x, scale, zero_point, kind, axis)
    for found in expected_integers:
        np.testing.assert_array_equal(from_rows(integers, torch.Size(x.shape), axis).numpy(), found.astype(np.float32))
    assert {int(integers.min()), int(integers.max())} == {grid.quant_min, grid.quant_max}, (
        "some values are clipped on either side"
    )
    np.testing.assert_array_equal(from_rows(dequantize(integers, *by_row), torch.Size(x.shape), axis).numpy(), expected)
    np.testing.assert_array_equal(
        from_rows(fake_quantize(rows, *by_row, grid), torch.Size(x.shape), axis).numpy(), expected
    )


numbers = st.floats(-1e4, 1e4, width=32)
ranges = st.tuples(numbers, numbers).map(sorted)
grids = st.tuples(st.sampled_from(GRIDS), st.booleans()).map(
    lambda g: Grid(g[0].quant_min, g[0].quant_max, g[0].symmetric, g[1])
)


@settings(deadline=None, max_examples=150)
@given(ends=ranges, grid=grids, shares=st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_the_range_is_covered_and_zero_is_exact(ends: list[float], grid: Grid, shares: list[float]) -> None:
    low, high = ends
    if grid.symmetric and grid.quant_min == 0:
        low, high = max(low, 0), max(high, 0)
    scale, zero_point = scale_and_zero_point(torch.tensor([low]), torch.tensor([high]), grid)
    inside = [min(max(low + share * (high - low), low), high) for share in shares]
    x = torch.tensor([low, high, *inside, 0.0])
    rounded = fake_quantize(x, scale, zero_point, grid)
    assert rounded[-1] == 0
    assert ((rounded - x).abs() <= scale * 0.5001).all()


@settings(deadline=None, max_examples=150)
@given(ends=ranges, grid=grids, values=st.lists(st.floats(-1e5, 1e5, width=32), min_size=1, max_size=20))
def test_rounding_twice_is_rounding_once(ends: list[float], grid: Grid, values: list[float]) -> None:
    scale, zero_point = scale_and_zero_point(torch.tensor(ends[:1]), torch.tensor(ends[1:]), grid)
    once = fake_quantize(torch.tensor(values), scale, zero_point, grid)
    assert torch.equal(fake_quantize(once, scale, zero_point, grid), once)
    integers = (once / scale).round() + zero_point
    assert ((integers >= grid.quant_min) & (integers <= grid.quant_max)).all()


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
@pytest.mark.parametrize("bits", range(2, 9))
def test_integers_are_packed_bit_by_bit(bits: int, count: int, signed: bool) -> None:
    lowest = -(2 ** (bits - 1)) if signed else 0
    integers = np.random.default_rng(count).integers(lowest, lowest + 2**bits, count)
    integers[:2] = [lowest, lowest + 2**bits - 1][:count]
    packed = pack(torch.from_numpy(integers), bits, lowest)
    stream = np.unpackbits((integers - lowest).astype(np.uint8)[:, None], axis=1, bitorder="little")[:, :bits].ravel()
    expected = np.packbits(np.pad(stream, (0, -len(stream) % (8 * bits))), bitorder="little")
    assert packed.dtype == torch.uint8 and len(packed) == math.ceil(count / 8) * bits
    np.testing.assert_array_equal(packed.numpy(), expected)
    np.testing.assert_array_equal(unpack(packed, bits, lowest, count).numpy(), integers)


@pytest.mark.parametrize(("value", "lowest"), [(8, -8), (-9, -8), (16, 0), (-1, 0)])
def test_integers_that_do_not_fit_are_not_packed(value: int, lowest: int) -> None:
    with pytest.raises(ValueError, match=f"{value} do not fit 4 bits from {lowest}"):
        pack(torch.tensor([value]), 4, lowest)


@pytest.mark.parametrize("group", [None, 1, 4, 7, 100])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_rows_are_channels_or_groups_of_them(axis: int | None, group: int | None) -> None:
    x = torch.randn(5, 3, 2, 3)
    rows = as_rows(x, axis, group)
    if axis is None:
        expected = [x.numpy().ravel()]
    else:
        channels = [x.numpy().take(i, axis).ravel() for i in range(x.shape[axis])]
        step = group or len(channels[0])
        expected = [channel[i : i + step] for channel in channels for i in range(0, len(channel), step)]
    assert len(rows) == len(expected)
    for row, values in zip(rows.numpy(), expected, strict=True):
        np.testing.assert_array_equal(row[: len(values)], values)
        assert not row[len(values) :].any(), "what fills up a group is zero"
    assert torch.equal(from_rows(rows, x.shape, axis), x)


def test_sqnr_is_that_of_the_formula() -> None:
    x = torch.randn(1000)
    y = x + 0.01 * torch.randn(1000)
    exact: list[Tensor] = [x.double(), y.double()]
    signal, noise = (exact[0] ** 2).sum().item(), ((exact[0] - exact[1]) ** 2).sum().item()
    assert sqnr_db(x, y) == pytest.approx(10 * math.log10(signal / noise), abs=1e-9)
    assert sqnr_db(torch.tensor([10.0]), torch.tensor([9.0])) == pytest.approx(20)
    assert sqnr_db(x, x) == math.inf
