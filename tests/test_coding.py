"""Coded arrays: every bit comes back, sizes are those that information theory allows, and damage is told."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qexp.coding import HEADER, decode, encode
from qexp.types import UserError

ROOT = Path(__file__).parents[1]
SPECIAL = np.array(
    [0x00000000, 0x80000000, 0x7FC00001, 0xFFFFFFFF, 0x7F800000, 0xFF800000, 0x00000001, 0x3F800000], np.uint32
)
SHAPES = arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=12)


def round_trip(values: np.ndarray) -> bytes:
    coded = encode(values)
    found = decode(coded)
    assert found.dtype == np.uint32 and found.tobytes() == values.tobytes()
    return coded


@settings(deadline=None, max_examples=200)
@given(arrays.arrays(np.uint32, SHAPES))
def test_any_bits_come_back(words: np.ndarray) -> None:
    round_trip(words.view(np.float32) if words.size else words.astype(np.float32))


@settings(deadline=None, max_examples=200)
@given(arrays.arrays(np.uint32, SHAPES, elements=st.sampled_from(SPECIAL.tolist())))
def test_signed_zeros_infinities_and_payloads_of_nan_come_back(words: np.ndarray) -> None:
    round_trip(words)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 30),
    st.integers(1, 400),
    st.integers(1, 300),
    st.sampled_from([0.0, 0.5, 0.99, 1.0]),
)
def test_few_values_with_and_without_zeros_come_back(
    seed: int, rows: int, columns: int, different: int, zeros: float
) -> None:
    random = np.random.default_rng(seed)
    palettes = random.standard_normal((rows, different)).astype(np.float32)
    values = np.take_along_axis(palettes, random.integers(different, size=(rows, columns)), 1)
    round_trip(np.where(random.random(values.shape) < zeros, np.float32(0), values))


@pytest.mark.parametrize(
    "values", [np.float32(3), np.zeros(0, np.float32), np.ones(1, np.float32)], ids=["scalar", "empty", "one"]
)
def test_the_smallest_arrays_come_back(values: np.ndarray) -> None:
    assert len(round_trip(np.asarray(values))) <= HEADER.size + 4


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_equal_values_take_next_to_nothing(value: float) -> None:
    assert len(round_trip(np.full((64, 1000), value, np.float32))) < 400


def entropy_bytes(symbols: np.ndarray) -> float:
    """What no code of independent symbols with these frequencies can go below (Shannon, 1948)."""
    share = np.unique(symbols, return_counts=True)[1].astype(np.float64) / symbols.size
    return float(-(share * np.log2(share)).sum() * symbols.size / 8)


@pytest.mark.parametrize(("zeros", "above"), [(0.0, 1.02), (0.4, 1.02), (0.6, 1.02), (0.9, 1.03), (0.95, 1.05)])
@pytest.mark.parametrize("clusters", [2, 4, 16, 32])
def test_shared_values_take_their_entropy(zeros: float, above: float, clusters: int) -> None:
    random = np.random.default_rng(0)
    normal = random.standard_normal((64, 3000))
    centroids = np.linspace(-2, 2, clusters).astype(np.float32)
    values = centroids[np.abs(normal[..., None] - centroids).argmin(-1)]
    values[random.random(values.shape) < zeros] = 0
    least = entropy_bytes(values) + 4 * clusters
    above += 0.02 * (clusters == 32)  # one index to a byte: its whole number of bits costs more
    assert 0.999 * least < len(round_trip(values)) < above * least + 150


def test_rows_have_palettes_of_their_own() -> None:
    random = np.random.default_rng(0)
    palettes = np.sort(random.standard_normal((200, 16)), 1).astype(np.float32)
    places = random.integers(16, size=(200, 2000))
    coded = round_trip(np.take_along_axis(palettes, places, 1))
    assert len(coded) < 200 * 2000 / 2 * 1.01 + palettes.nbytes + 300


def test_sparse_values_take_their_flags_and_themselves() -> None:
    random = np.random.default_rng(0)
    dense = random.standard_normal((64, 3000)).astype(np.float32)
    values = np.where(random.random(dense.shape) < 0.6, np.float32(0), dense)
    flags, kept = entropy_bytes(values != 0), values[values != 0]
    exponents = entropy_bytes(kept.view(np.uint32) >> 23 & 0xFF)
    assert len(round_trip(values)) < 1.02 * (flags + exponents + 3 * len(kept)) + 100
    assert len(values.tobytes()) / len(encode(values)) > 2.7


def test_zeroed_rows_are_smaller_than_scattered_zeros() -> None:
    values = np.random.default_rng(0).standard_normal((64, 3000)).astype(np.float32)
    scattered = np.where(np.random.default_rng(1).random(values.shape) < 0.5, np.float32(0), values)
    values[::2] = 0
    assert len(round_trip(values)) < len(round_trip(scattered)) - 0.9 * values.size / 8


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_a_damaged_array_is_refused(data: st.DataObject) -> None:
    values = np.random.default_rng(0).standard_normal((8, 40)).astype(np.float32)
    kind = data.draw(st.sampled_from(["dense", "sparse", "shared"]))
    values = {"dense": values, "sparse": values * (values > 0.5), "shared": values.round()}[kind]
    coded = bytearray(encode(values))
    if data.draw(st.booleans()):
        coded = coded[: data.draw(st.integers(0, len(coded) - 1))]
    else:
        coded[data.draw(st.integers(0, len(coded) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(UserError, match="compress again"):
        decode(bytes(coded))


@pytest.mark.parametrize("values", [np.zeros((8, 10**5), np.float32), np.ones((3, 100), np.float32)])
def test_a_damaged_number_of_values_allocates_nothing(values: np.ndarray) -> None:
    coded = bytearray(encode(values))
    assert (decode(bytes(coded)).view(np.float32) == values.reshape(-1)).all()
    coded[6] ^= 1  # 2^40 more of them
    with pytest.raises(UserError, match=f"it cannot hold {2**40 + values.size} values"):
        decode(bytes(coded))


def test_values_are_checked_even_where_the_code_is_whole() -> None:
    zeros, negative = (encode(np.full(100, value, np.float32)) for value in (0.0, -0.0))
    (_, count, crc, _), body = HEADER.unpack_from(zeros), negative[HEADER.size :]
    with pytest.raises(UserError, match="another checksum than those that were stored"):
        decode(HEADER.pack(negative[0], count, crc, zlib.crc32(body)) + body)


def test_a_device_needs_numpy_alone() -> None:
    code = "import sys, qexp.coding; print([m for m in ('torch', 'onnx', 'zstandard', 'scipy') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
