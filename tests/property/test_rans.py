from __future__ import annotations

import constriction
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import WAYS, alphabets, gaussian_symbols, order0_bits, symbol_arrays, table_of
from flyweight.kernels import backend, histogram, rans_bound, rans_decode, rans_encode
from flyweight.typing import Freqs, Symbols


@st.composite
def cases(draw: st.DrawFn) -> tuple[Symbols, Freqs, int, int]:
    alphabet_size = draw(alphabets)
    prob_bits = draw(st.integers(8, 15))
    ways = draw(st.sampled_from(WAYS))
    symbols = draw(symbol_arrays(alphabet_size, ways))
    return symbols, table_of(symbols, alphabet_size, prob_bits), prob_bits, ways


@given(case=cases())
def test_round_trip_within_bound(case: tuple[Symbols, Freqs, int, int]) -> None:
    symbols, freqs, prob_bits, ways = case
    stream = rans_encode(symbols, freqs, prob_bits=prob_bits, ways=ways)
    assert len(stream) <= rans_bound(symbols.size, ways=ways)
    assert stream == rans_encode(symbols, freqs, prob_bits=prob_bits, ways=ways)
    decoded = rans_decode(stream, freqs, count=symbols.size, prob_bits=prob_bits, ways=ways)
    np.testing.assert_array_equal(decoded, symbols, strict=True)


@pytest.mark.parametrize("prob_bits", [8, 11, 15])
@pytest.mark.parametrize("ways", [1, 32])
def test_rarest_symbols_stay_within_bound(prob_bits: int, ways: int) -> None:
    freqs = np.array([(1 << prob_bits) - 1, 1], dtype=np.uint16)
    symbols = np.ones(3000, dtype=np.uint8)
    stream = rans_encode(symbols, freqs, prob_bits=prob_bits, ways=ways)
    assert len(stream) <= rans_bound(symbols.size, ways=ways)
    decoded = rans_decode(stream, freqs, count=3000, prob_bits=prob_bits, ways=ways)
    np.testing.assert_array_equal(decoded, symbols)


@pytest.mark.parametrize("ways", WAYS)
def test_a_certain_symbol_costs_nothing(ways: int) -> None:
    freqs = np.array([0, 1 << 12, 0], dtype=np.uint16)
    symbols = np.ones(1000, dtype=np.uint8)
    stream = rans_encode(symbols, freqs, prob_bits=12, ways=ways)
    assert stream == (1 << 16).to_bytes(4, "little") * ways
    assert stream == rans_encode(symbols[:0], freqs, prob_bits=12, ways=ways)
    decoded = rans_decode(stream, freqs, count=1000, prob_bits=12, ways=ways)
    np.testing.assert_array_equal(decoded, symbols)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, np.frombuffer])
def test_streams_may_come_in_any_buffer(kind: type) -> None:
    symbols = gaussian_symbols(500)
    freqs = table_of(symbols, 63, 12)
    stream = rans_encode(symbols, freqs, prob_bits=12, ways=4)
    given_as = np.frombuffer(stream, np.uint8) if kind is np.frombuffer else kind(stream)
    for name in ("cpu", "reference"):
        with backend(name):
            decoded = rans_decode(given_as, freqs, count=500, prob_bits=12, ways=4)
        np.testing.assert_array_equal(decoded, symbols)


@pytest.mark.parametrize("std", [0.4, 2.0, 6.0, 12.0])
@pytest.mark.parametrize(("prob_bits", "ways"), [(12, 1), (14, 8), (15, 32)])
def test_never_below_order0_entropy(std: float, prob_bits: int, ways: int) -> None:
    symbols = gaussian_symbols(100_000, std=std)
    stream = rans_encode(symbols, table_of(symbols, 63, prob_bits), prob_bits=prob_bits, ways=ways)
    assert 8 * len(stream) >= order0_bits(symbols)


@pytest.mark.parametrize("std", [2.0, 6.0])
def test_size_within_a_thousandth_of_constriction(std: float) -> None:
    symbols = gaussian_symbols(1_000_000, std=std)
    counts = histogram(symbols, alphabet_size=63)
    shares = counts / counts.sum()
    model = constriction.stream.model.Categorical(shares.astype(np.float32), perfect=False)
    oracle = constriction.stream.stack.AnsCoder()
    oracle.encode_reverse(symbols.astype(np.int32), model)

    freqs = table_of(symbols, 63, 14)
    stream = rans_encode(symbols, freqs, prob_bits=14, ways=32)
    assert 8 * len(stream) <= 1.001 * oracle.num_bits()
    assert 8 * len(stream) <= 1.0005 * order0_bits(symbols)  # our own limit at this size
    decoded = rans_decode(stream, freqs, count=symbols.size, prob_bits=14, ways=32)
    np.testing.assert_array_equal(decoded, symbols)


def test_division_free_step_is_exact() -> None:
    """The proof in rans_scalar.cpp, checked at the quotients' edges for every frequency."""
    for prob_bits in (8, 12, 15):
        for freq in range(1, (1 << prob_bits) + 1):
            shift = 32 + prob_bits
            reciprocal = -((-1 << shift) // freq)
            limit = freq << (32 - prob_bits)
            for state in (1 << 16, freq - 1, freq, limit // 2 // freq * freq - 1, limit - 1):
                assert state * reciprocal < 1 << 64
                assert state * reciprocal >> shift == state // freq
