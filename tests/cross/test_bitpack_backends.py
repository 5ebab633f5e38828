"""Every instruction set packs the same bytes and gives the same codes and values, bit for bit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from checks import BACKENDS
from flyweight.errors import InvalidArgumentError
from flyweight.kernels import backend, cpu_tiers, pack_bits, unpack_bits, unpack_dequantize
from flyweight.typing import AnyArray

WIDTHS = range(1, 9)
PAIRS = list(itertools.product(BACKENDS, BACKENDS))


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_size_and_every_pair(bits: int) -> None:
    rng = np.random.default_rng(bits)
    lo = -(1 << (bits - 1))
    for count in (*range(140), *range(505, 520), 10_007):
        codes = rng.integers(lo, -lo, count, dtype=np.int8)
        streams = {}
        for packer, unpacker in PAIRS:
            with backend(packer):
                streams[packer] = pack_bits(codes, bits=bits, lo=lo)
            with backend(unpacker):
                got = unpack_bits(streams[packer], bits=bits, count=count, lo=lo)
            np.testing.assert_array_equal(got, codes, strict=True)
        assert len({stream.tobytes() for stream in streams.values()}) == 1


@pytest.mark.parametrize("bits", range(1, 8))
@pytest.mark.parametrize("count", [5, 64, 200])
def test_one_bad_symbol_anywhere(bits: int, count: int) -> None:
    for at, bad in itertools.product(range(count), {1 << bits, 128, 255}):
        symbols = np.zeros(count, np.uint8)
        symbols[at] = bad
        messages = set()
        for name in BACKENDS:
            with backend(name), pytest.raises(InvalidArgumentError) as error:
                pack_bits(symbols, bits=bits)
            messages.add(str(error.value))
        assert messages == {f"bitpack: symbol {bad} at position {at} does not fit into {bits} bits"}


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("lo_is_lowest", [True, False])
def test_every_code_that_is_outside(bits: int, lo_is_lowest: bool) -> None:
    lo = -128 if lo_is_lowest else 128 - (1 << bits)
    hi = lo + (1 << bits) - 1
    for code in (-128, -1, 0, 127, max(lo - 1, -128), min(hi + 1, 127), lo, hi):
        codes = np.full(70, lo, np.int8)
        codes[66] = code
        for name in BACKENDS:
            with backend(name):
                if lo <= code <= hi:
                    packed = pack_bits(codes, bits=bits, lo=lo)
                    got = unpack_bits(packed, bits=bits, count=70, lo=lo)
                    np.testing.assert_array_equal(got, codes)
                    continue
                with pytest.raises(InvalidArgumentError, match=f"code {code} at position 66 is "):
                    pack_bits(codes, bits=bits, lo=lo)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("cols", [1, 13, 64, 100, 515])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_same_values(bits: int, cols: int, dtype: Any) -> None:
    rng = np.random.default_rng(cols)
    packed = pack_bits(rng.integers(0, 1 << bits, 11 * cols, dtype=np.uint8), bits=bits)
    scales = rng.normal(size=(11, 1)).astype(np.float32)
    scales[3:7, 0] = np.inf, np.nan, 1e38, 1e-44
    how: Any = {"bits": bits, "lo": -128, "shape": (11, cols), "dtype": dtype}
    results = []
    for name in BACKENDS:
        with backend(name):
            results.append(unpack_dequantize(packed, scales, **how).tobytes())
    assert len(set(results)) == 1


@pytest.mark.parametrize("name", cpu_tiers())
@pytest.mark.parametrize("offset", [0, 1, 5])
def test_values_that_are_written_past_the_caches(name: Any, offset: int) -> None:
    """More than 16 MiB of them, at any alignment, in rows that end anywhere in a vector."""
    rows, cols = 2100, 2011
    symbols = np.random.default_rng(0).integers(0, 32, (rows, cols), dtype=np.uint8)
    packed = pack_bits(symbols.ravel(), bits=5)
    scales = np.random.default_rng(1).normal(size=(rows, 1)).astype(np.float16)
    memory: AnyArray = np.full(rows * cols + 40, 7, np.float32)
    out = memory[offset : offset + rows * cols].reshape(rows, cols)
    with backend(name):
        assert unpack_dequantize(packed, scales, bits=5, lo=-16, shape=(rows, cols), out=out) is out
    expected = (symbols.astype(np.float32) - 16) * scales.astype(np.float32)
    np.testing.assert_array_equal(out, expected)
    assert np.all(memory[:offset] == 7)
    assert np.all(memory[offset + rows * cols :] == 7)


@pytest.mark.parametrize("name", BACKENDS)
def test_every_half_precision_scale(name: Any) -> None:
    scales = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(-1, 1)
    packed = pack_bits(np.ones(scales.size, np.int8), bits=1, lo=0)
    with backend(name):
        values = unpack_dequantize(packed, scales, bits=1, lo=0, shape=(scales.size, 1))
    np.testing.assert_array_equal(values, scales.astype(np.float32), strict=True)
