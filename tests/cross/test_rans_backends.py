"""Every encoder with every decoder, and streams that are the same byte for byte."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import BACKENDS, WAYS, alphabets, gaussian_symbols, symbol_arrays, table_of
from flyweight.kernels import backend, histogram, normalize_counts, rans_decode, rans_encode

PAIRS = list(itertools.product(BACKENDS, BACKENDS))


@pytest.mark.parametrize("ways", WAYS)
@pytest.mark.parametrize("prob_bits", [8, 12, 15])
def test_matrix(prob_bits: int, ways: int) -> None:
    symbols = gaussian_symbols(1003, std=5.0, seed=ways)
    freqs = table_of(symbols, 63, prob_bits)
    streams = {}
    for encoder, decoder in PAIRS:
        with backend(encoder):
            streams[encoder] = rans_encode(symbols, freqs, prob_bits=prob_bits, ways=ways)
        with backend(decoder):
            decoded = rans_decode(
                streams[encoder], freqs, count=symbols.size, prob_bits=prob_bits, ways=ways
            )
        np.testing.assert_array_equal(decoded, symbols, strict=True)
    assert len(set(streams.values())) == 1


@given(data=st.data(), prob_bits=st.integers(8, 15), ways=st.sampled_from(WAYS))
def test_same_stream(data: st.DataObject, prob_bits: int, ways: int) -> None:
    alphabet_size = data.draw(alphabets)
    symbols = data.draw(symbol_arrays(alphabet_size, ways))
    freqs = table_of(symbols, alphabet_size, prob_bits)
    with backend("reference"):
        expected = rans_encode(symbols, freqs, prob_bits=prob_bits, ways=ways)
    assert rans_encode(symbols, freqs, prob_bits=prob_bits, ways=ways) == expected


counts = st.one_of(
    st.integers(0, 5), st.integers(0, 1 << 20), st.integers(0, (1 << 40) - 1), st.just(0)
)


@given(numbers=st.lists(counts, min_size=1, max_size=256), prob_bits=st.integers(8, 15))
def test_same_frequencies(numbers: list[int], prob_bits: int) -> None:
    array = np.array(numbers, dtype=np.int64)
    if not array.any():
        array[0] = 1
    with backend("reference"):
        expected = normalize_counts(array, prob_bits=prob_bits)
    freqs = normalize_counts(array, prob_bits=prob_bits)
    np.testing.assert_array_equal(freqs, expected, strict=True)
    assert int(freqs.sum(dtype=np.int64)) == 1 << prob_bits
    np.testing.assert_array_equal(freqs > 0, array > 0)


def test_same_histogram() -> None:
    symbols = gaussian_symbols(10_001)
    for alphabet_size in (63, 256):
        with backend("reference"):
            expected = histogram(symbols, alphabet_size=alphabet_size)
        got = histogram(symbols, alphabet_size=alphabet_size)
        np.testing.assert_array_equal(got, expected, strict=True)
