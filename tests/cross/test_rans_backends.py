"""Every encoder with every decoder, and streams that are the same byte for byte."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import BACKENDS, WAYS, alphabets, gaussian_symbols, symbol_arrays, table_of
from flyweight.kernels import (
    backend,
    cpu_tiers,
    histogram,
    normalize_counts,
    rans_decode,
    rans_encode,
)

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


@given(
    data=st.data(),
    tables=st.sampled_from((1, 2, 7)),
    ways=st.sampled_from(WAYS),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_same_stream_with_classes_and_hidden_words(
    data: st.DataObject, tables: int, ways: int, shape: tuple[int, int]
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    alphabet_size = data.draw(st.sampled_from((2, 15, 63, 65, 256)))
    freqs = np.stack(
        [
            normalize_counts(rng.integers(1, 1 << 12, alphabet_size), prob_bits=12)
            for _ in range(tables)
        ]
    )
    symbols = rng.integers(0, alphabet_size, shape[0] * shape[1]).astype(np.uint8)
    rows, cols = (rng.integers(0, tables, n).astype(np.uint8) for n in shape)
    hidden = rng.integers(0, 1 << 16, ways).astype(np.uint16)
    streams = set()
    for name in BACKENDS:
        with backend(name):
            stream = rans_encode(
                symbols,
                freqs,
                prob_bits=12,
                ways=ways,
                row_classes=rows,
                col_classes=cols,
                hidden=hidden,
            )
            found = np.zeros_like(hidden)
            decoded = rans_decode(
                stream,
                freqs,
                count=symbols.size,
                prob_bits=12,
                ways=ways,
                row_classes=rows,
                col_classes=cols,
                hidden=found,
            )
        np.testing.assert_array_equal(decoded, symbols, strict=True)
        np.testing.assert_array_equal(found, hidden)
        streams.add(stream)
    assert len(streams) == 1


@given(data=st.data(), prob_bits=st.integers(8, 15), ways=st.sampled_from(WAYS))
def test_same_stream(data: st.DataObject, prob_bits: int, ways: int) -> None:
    alphabet_size = data.draw(alphabets)
    symbols = data.draw(symbol_arrays(alphabet_size, ways))
    freqs = table_of(symbols, alphabet_size, prob_bits)
    streams = set()
    for name in BACKENDS:
        with backend(name):
            streams.add(rans_encode(symbols, freqs, prob_bits=prob_bits, ways=ways))
    assert len(streams) == 1


@pytest.mark.parametrize("alphabet_size", [2, 63, 64, 65, 256])
@pytest.mark.parametrize("ways", [8, 16, 32, 64])
@pytest.mark.parametrize("skew", [0.02, 1.0, 50.0])
def test_long_runs_on_every_tier(alphabet_size: int, ways: int, skew: float) -> None:
    """Several blocks of the walk, a partial row, every encoder with every decoder."""
    rng = np.random.default_rng(alphabet_size + ways)
    shares = rng.dirichlet(np.full(alphabet_size, skew))
    symbols = rng.choice(alphabet_size, size=3 * (1 << 13) + 77, p=shares).astype(np.uint8)
    freqs = table_of(symbols, alphabet_size, 12)
    streams = set()
    for name in cpu_tiers():
        with backend(name):
            streams.add(rans_encode(symbols, freqs, prob_bits=12, ways=ways))
    (stream,) = streams
    for name in cpu_tiers():
        with backend(name):
            decoded = rans_decode(stream, freqs, count=symbols.size, prob_bits=12, ways=ways)
        np.testing.assert_array_equal(decoded, symbols, strict=True)


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
