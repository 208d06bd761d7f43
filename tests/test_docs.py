"""docs/one_convolution.md: its numbers are those of today's code, and the integer arithmetic it explains is right."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from integer_convolution import Convolution, convolution, fixed_point, shifted
from one_convolution import sections

from qexp.method.quantize.base import products_saturate
from qexp.method.quantize.numerics import quantize

pytestmark = pytest.mark.integration  # compresses whole networks
DOCUMENT = Path(__file__).parents[1] / "docs" / "one_convolution.md"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
FLOAT_ERROR = 1e-3  # steps of the result that fp32 arithmetic may be off by
WAYS: list[dict[str, int]] = [{}, {"bits": 4}, {"before_activation": True}]
each_way = pytest.mark.parametrize("way", WAYS, ids=["8 bits", "4 bits", "before activation"])


def blocks() -> dict[str, str]:
    """Blocks of numbers in the document by the title above them."""
    _, *parts = re.split(r"^## (.+)$", DOCUMENT.read_text(), flags=re.M)
    titled = zip(parts[::2], parts[1::2], strict=True)
    return {title: block for title, body in titled for block in re.findall(r"^```text\n(.*?)\n```$", body, re.M | re.S)}


def says_the_same(written: str, printed: str) -> bool:
    """Whether both have the same words and numbers: integers exactly, others but for one unit in the last digit.

    Integers from 100,000, such as fixed-point multipliers, show the last digits of a float32 scale, and may differ by
    1e-5 of themselves.
    """
    words = [NUMBER.sub("#", " ".join(text.split())) for text in (written, printed)]
    numbers = zip(NUMBER.findall(written), NUMBER.findall(printed), strict=False)
    return words[0] == words[1] and all(_close(Decimal(a), Decimal(b)) for a, b in numbers)


def _close(written: Decimal, printed: Decimal) -> bool:
    places = max(int(number.as_tuple().exponent) for number in (written, printed))
    allowed = Decimal(10) ** places if places < 0 else Decimal("1e-5") * abs(written)
    return abs(written - printed) <= allowed


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    return sections()


@pytest.mark.parametrize("title", blocks())
def test_the_document_has_the_numbers_of_today(title: str, printed: dict[str, str]) -> None:
    assert says_the_same(blocks()[title], printed[title]), f"docs/one_convolution.py prints\n\n{printed[title]}"


def test_the_document_has_every_block(printed: dict[str, str]) -> None:
    assert list(blocks()) == list(printed)


def accumulators(c: Convolution) -> np.ndarray:
    """[O,H,W] without bias, position by position of the window; zero points subtracted first instead of at the end."""
    size = c.x.shape[1]
    x = np.zeros((len(c.x), size + 2, size + 2), dtype=np.int64)
    x[:, 1:-1, 1:-1] = c.qx.integers - c.qx.zero_point
    weight = c.qweight.integers
    assert x.dtype == weight.dtype == np.int64
    return sum(
        np.tensordot(weight[:, :, i, j], x[:, i : i + size, j : j + size], 1) for i in range(3) for j in range(3)
    )


def as_result(steps: np.ndarray, c: Convolution) -> np.ndarray:
    return np.clip(np.rint(steps).astype(np.int64) + c.qy.zero_point, c.qy.grid.quant_min, c.qy.grid.quant_max)


def assert_equal_but_for_ties(
    actual: np.ndarray, steps: np.ndarray, c: Convolution, error: np.ndarray | float = 0.0
) -> None:
    """Check that actual[O,H,W] are the exact `steps` rounded.

    Those within `error` and FLOAT_ERROR of the middle of two integers may be one off.
    """
    off = actual - as_result(steps, c)
    from_tie = abs(steps - np.floor(steps) - 0.5)
    assert actual.shape == steps.shape and abs(off).max() <= 1
    assert (from_tie[off != 0] < (FLOAT_ERROR + error + np.zeros_like(steps))[off != 0]).all()


@each_way
def test_the_integers_are_those_of_the_method(way: dict[str, int]) -> None:
    c = convolution(**way)
    x = c.qx.quantizer
    expected = quantize(torch.from_numpy(c.x).reshape(1, -1), x.scale[:, None], x.zero_point[:, None], x.grid)
    assert np.array_equal(c.qx.integers.ravel(), expected[0].numpy()) and len(np.unique(c.qx.integers)) > 8
    scale = abs(c.weight).max((1, 2, 3), keepdims=True) / 127
    if c.qweight.grid.quant_max == 127:
        assert abs(c.qweight.integers - c.weight / scale).max() <= 0.5 + 1e-4


@each_way
def test_the_whole_layer_in_integers_is_what_the_graph_computes(way: dict[str, int]) -> None:
    c = convolution(**way)
    multiplier = c.multiplier[:, None, None]
    sums = accumulators(c)
    assert np.array_equal(sums + c.integer_bias[:, None, None], c.accumulators)
    bias = (c.bias.astype(np.float64) / (c.qx.scale * c.qweight.scale))[:, None, None]
    steps = (sums + bias) * multiplier
    if c.qy.zero_point == 0:
        assert (steps < -1).any(), "or ReLU would have nothing to do"
    assert len(np.unique(c.qy.integers)) > 8
    assert_equal_but_for_ties(c.qy.integers, steps, c)
    assert_equal_but_for_ties(c.result, steps, c, multiplier / 2)  # which has a rounded bias


@pytest.mark.skipif(
    products_saturate(), reason="this processor adds pairs of products in 16 bits, where they may not fit"
)
@pytest.mark.parametrize("before_activation", [False, True])
def test_onnxruntime_computes_the_same_integers(before_activation: bool) -> None:
    c = convolution(before_activation=before_activation)
    channels = len(c.weight)
    constants = {
        "x_scale": c.qx.scale[0].astype(np.float32), "x_zero": np.uint8(c.qx.zero_point),
        "weight": c.qweight.integers.astype(np.int8), "weight_scale": c.qweight.scale.astype(np.float32),
        "weight_zero": np.zeros(channels, np.int8), "y_scale": c.qy.scale[0].astype(np.float32),
        "y_zero": np.uint8(c.qy.zero_point),
        "bias": c.integer_bias.astype(np.int32),
    }  # fmt: skip
    node = onnx.helper.make_node("QLinearConv", ["x", *constants], ["y"], pads=[1, 1, 1, 1])
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, [1, None, 32, 32]) for name in ("x", "y")]
    stored = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = onnx.helper.make_graph([node], "layer", ends[:1], ends[1:], stored)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": c.qx.integers[None].astype(np.uint8)})
    steps = (accumulators(c) + c.integer_bias[:, None, None]) * c.multiplier[:, None, None]
    assert_equal_but_for_ties(y[0].astype(np.int64), steps, c)
    assert_equal_but_for_ties(c.result, steps, c)


@each_way
def test_fixed_point_multipliers_give_the_same_integers(way: dict[str, int]) -> None:
    c = convolution(**way)
    stored, shift = fixed_point(c.multiplier)
    assert (stored >= 2**30).all() and (stored < 2**31).all()
    products = c.accumulators * stored[:, None, None]
    assert abs(products).max() < 2**62
    integers = c.qy.limited(shifted(products, shift[:, None, None]))
    assert_equal_but_for_ties(integers, c.accumulators * c.multiplier[:, None, None], c)


@pytest.mark.parametrize(
    ("product", "rounded"), [(4, 1), (6, 2), (5, 1), (7, 2), (-4, -1), (-5, -1), (-7, -2), (-8, -2)]
)
def test_a_shift_rounds_to_nearest(product: int, rounded: int) -> None:
    assert shifted(np.int64(product), np.int64(2)) == rounded


@pytest.mark.parametrize(("name", "count"), [("product", 1), ("sum of 27 products", 27)])
def test_no_sum_exceeds_the_bounds_of_the_document(name: str, count: int) -> None:
    c = convolution()
    row = re.search(rf"^{name} +int(?:16|32) +(\d+) +(\d+) ", blocks()["Bits at every step"], re.M)
    assert row
    bound, width = map(int, row.groups())
    assert bound == count * 255 * 127 and 2 ** (width - 2) <= bound < 2 ** (width - 1)
    assert abs(c.products.reshape(-1, 27 // count, count).sum(-1)).max() <= bound
    assert count == 1 or abs(accumulators(c)).max() <= bound
    assert abs(c.accumulators).max() <= c.largest_sum + abs(c.integer_bias).max() < 2**31


def test_what_the_text_says_of_rounded_biases() -> None:
    c = convolution()
    assert c.multiplier.max() / 2 < 0.003
    assert 0 < (c.result != c.qy.integers).sum() < 50


def test_what_the_text_says_of_large_layers() -> None:
    assert (3 * 3 * 512 * 255 * 127).bit_length() + 1 == 29
    assert 66_311 * 255 * 127 < 2**31 <= 66_312 * 255 * 127
