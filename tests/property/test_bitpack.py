from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import BACKENDS
from flyweight.kernels import backend, pack_bits, packed_size, unpack_bits, unpack_dequantize
from flyweight.quant.grid import Grid
from flyweight.typing import Codes, Symbols

SIZES = (0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 200, 511, 512, 513, 1100)


@st.composite
def packable(draw: st.DrawFn) -> tuple[Symbols, int]:
    bits = draw(st.integers(1, 8))
    count = draw(st.sampled_from(SIZES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return rng.integers(0, 1 << bits, count, dtype=np.uint8), bits


@st.composite
def signed(draw: st.DrawFn) -> tuple[Codes, int, int]:
    symbols, bits = draw(packable())
    lo = draw(st.integers(-128, 128 - (1 << bits)))
    return (symbols.astype(np.int16) + lo).astype(np.int8), bits, lo


@st.composite
def quantized(draw: st.DrawFn) -> tuple[Codes, Any, int, int, int]:
    """Codes (rows, cols), scales, bits, lo and group size; rows that start anywhere in a byte."""
    bits = draw(st.integers(1, 8))
    lo = draw(st.integers(-128, 128 - (1 << bits)))
    rows, cols = draw(st.integers(0, 9)), draw(st.sampled_from((0, 1, 3, 8, 65, 129, 512, 515)))
    group_size = draw(st.sampled_from((0, 0, 1, 5, 64, 1000)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    codes = rng.integers(lo, lo + (1 << bits), (rows, cols), dtype=np.int8)
    groups = Grid(lo=lo, hi=lo + (1 << bits) - 1, group_size=group_size).groups(cols)
    with np.errstate(over="ignore"):
        scales = (rng.normal(size=(rows, groups)) * 10.0 ** rng.integers(-42, 38)).astype(
            draw(st.sampled_from((np.float16, np.float32)))
        )
    if scales.size and draw(st.integers(0, 3)) == 0:
        scales.flat[rng.integers(scales.size)] = draw(st.sampled_from((np.inf, -np.inf, np.nan)))
    return codes, scales, bits, lo, group_size


@pytest.mark.parametrize("name", BACKENDS)
@given(case=packable())
def test_round_trip(name: str, case: tuple[Symbols, int]) -> None:
    symbols, bits = case
    with backend(name):
        packed = pack_bits(symbols, bits=bits)
        assert packed.size == packed_size(symbols.size, bits=bits)
        np.testing.assert_array_equal(
            unpack_bits(packed, bits=bits, count=symbols.size), symbols, strict=True
        )


@pytest.mark.parametrize("name", BACKENDS)
@given(case=signed())
def test_codes_are_symbols_plus_lo(name: str, case: tuple[Codes, int, int]) -> None:
    codes, bits, lo = case
    symbols = (codes.astype(np.int16) - lo).astype(np.uint8)
    with backend(name):
        packed = pack_bits(codes, bits=bits, lo=lo)
        np.testing.assert_array_equal(packed, pack_bits(symbols, bits=bits), strict=True)
        unpacked = unpack_bits(packed, bits=bits, count=codes.size, lo=lo)
    np.testing.assert_array_equal(unpacked, codes, strict=True)


@pytest.mark.parametrize("name", BACKENDS)
@given(case=packable())
def test_layout_is_one_little_endian_integer(name: str, case: tuple[Symbols, int]) -> None:
    symbols, bits = case
    number = sum(int(symbol) << (i * bits) for i, symbol in enumerate(symbols))
    with backend(name):
        packed = pack_bits(symbols, bits=bits)
    assert packed.tobytes() == number.to_bytes(packed.size, "little")


@pytest.mark.parametrize("name", BACKENDS)
@given(case=quantized())
def test_dequantization_is_the_grids(name: str, case: tuple[Codes, Any, int, int, int]) -> None:
    codes, scales, bits, lo, group_size = case
    grid = Grid(lo=lo, hi=lo + (1 << bits) - 1, group_size=group_size)
    with np.errstate(all="ignore"):
        expected = grid.dequantize(codes, scales)
        rounded = expected.astype(ml_dtypes.bfloat16)
    packed = pack_bits(codes.ravel(), bits=bits, lo=lo)
    how: Any = {"bits": bits, "lo": lo, "shape": codes.shape, "group_size": group_size}
    with backend(name):
        values = unpack_dequantize(packed, scales, **how)
        halves = unpack_dequantize(packed, scales, **how, dtype="bfloat16")
    assert values.shape == halves.shape == codes.shape
    np.testing.assert_array_equal(values.view(np.uint32), expected.view(np.uint32), strict=True)
    np.testing.assert_array_equal(halves, rounded.view(np.uint16), strict=True)


@pytest.mark.parametrize("name", BACKENDS)
@given(case=signed(), offset=st.integers(0, 70))
def test_out_is_filled_and_nothing_beside_it(
    name: str, case: tuple[Codes, int, int], offset: int
) -> None:
    codes, bits, lo = case
    size = packed_size(codes.size, bits=bits)
    around_packed = np.full(size + 200, 0xA5, np.uint8)
    around_codes = np.full(codes.size + 200, 0x5A, np.int8)
    packed = around_packed[offset : offset + size]
    unpacked = around_codes[offset : offset + codes.size]
    with backend(name):
        assert pack_bits(codes, bits=bits, lo=lo, out=packed) is packed
        assert unpack_bits(packed, bits=bits, count=codes.size, lo=lo, out=unpacked) is unpacked
    np.testing.assert_array_equal(unpacked, codes)
    for around, start, count in (
        (around_packed, offset, size),
        (around_codes, offset, codes.size),
    ):
        untouched = np.delete(around, np.s_[start : start + count])
        assert np.all(untouched == untouched[0])
