from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import BACKENDS
from flyweight.kernels import backend, pack_bits, packed_size, unpack_bits
from flyweight.typing import Symbols


@st.composite
def packable(draw: st.DrawFn) -> tuple[Symbols, int]:
    bits = draw(st.integers(1, 8))
    count = draw(st.sampled_from((0, 1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 200)))
    seed = draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    return rng.integers(0, 1 << bits, count, dtype=np.uint8), bits


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


@given(case=packable())
def test_backends_agree(case: tuple[Symbols, int]) -> None:
    symbols, bits = case
    with backend("reference"):
        expected = pack_bits(symbols, bits=bits)
    np.testing.assert_array_equal(pack_bits(symbols, bits=bits), expected, strict=True)


@pytest.mark.parametrize("name", BACKENDS)
@given(case=packable())
def test_layout_is_one_little_endian_integer(name: str, case: tuple[Symbols, int]) -> None:
    symbols, bits = case
    number = sum(int(symbol) << (i * bits) for i, symbol in enumerate(symbols))
    with backend(name):
        packed = pack_bits(symbols, bits=bits)
    assert packed.tobytes() == number.to_bytes(packed.size, "little")
