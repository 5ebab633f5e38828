"""Whole ANS streams and their tables: the same bytes and judgments from every backend."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import BACKENDS, gaussian_symbols, order0_bits
from flyweight.errors import CorruptStreamError, InvalidArgumentError
from flyweight.kernels import (
    ans_decode,
    ans_encode,
    backend,
    cpu_tiers,
    histogram,
    rans_decode,
    rans_encode,
)
from flyweight.kernels.ans import choose_weights, decode_weights
from flyweight.reference.weights import encode_weights
from flyweight.typing import Symbols

MODES = {"one symbol": 0, "table": 1, "side words": 2}


@st.composite
def runs(draw: st.DrawFn) -> tuple[Symbols, int]:
    """Symbols from constant to flat, with rare ones, around the sizes where ways change."""
    alphabet = draw(st.sampled_from([1, 2, 3, 15, 63, 64, 65, 255, 256]))
    count = draw(st.sampled_from([0, 1, 2, 31, 300, 4095, 8192, 20_000]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shares = rng.dirichlet(np.full(alphabet, draw(st.sampled_from([0.005, 0.05, 1.0, 50.0]))))
    return rng.choice(alphabet, size=count, p=shares).astype(np.uint8), alphabet


@given(run=runs())
def test_one_stream_and_every_decoder(run: tuple[Symbols, int]) -> None:
    symbols, alphabet = run
    streams = set()
    for encoder in BACKENDS:
        with backend(encoder):
            streams.add(ans_encode(symbols, alphabet_size=alphabet))
    (stream,) = streams
    for decoder in BACKENDS:
        with backend(decoder):
            decoded = ans_decode(stream, count=symbols.size, alphabet_size=alphabet)
        np.testing.assert_array_equal(decoded, symbols, strict=True)


@pytest.mark.parametrize("count", [1 << 17, (1 << 19) + 5])
@pytest.mark.parametrize("std", [0.3, 2.4, 9.3])
def test_large_streams_on_every_tier(count: int, std: float) -> None:
    symbols = gaussian_symbols(count, std=std)
    streams = set()
    for name in cpu_tiers():
        with backend(name):
            stream = ans_encode(symbols, alphabet_size=63)
            streams.add(stream)
            decoded = ans_decode(stream, count=count, alphabet_size=63)
        np.testing.assert_array_equal(decoded, symbols, strict=True)
    (stream,) = streams
    assert stream[0] >> 6 == MODES["side words"]
    assert 0 <= 8 * len(stream) / order0_bits(symbols) - 1 < 0.003


def test_a_section_of_a_million_symbols_costs_at_most_a_twentieth_of_a_percent() -> None:
    for std in (2.0, 2.41, 6.0, 9.3):
        symbols = gaussian_symbols(1_000_000, std=std)
        overhead = 8 * len(ans_encode(symbols, alphabet_size=63)) / order0_bits(symbols) - 1
        assert 0 < overhead < 0.0005


def test_heavy_tails_cost_no_more() -> None:
    """Many symbols far below one slot: the case for the escape."""
    rng = np.random.default_rng(0)
    symbols = (np.rint(2.4 * rng.standard_t(3, 1_000_000)).clip(-31, 31) + 31).astype(np.uint8)
    overhead = 8 * len(ans_encode(symbols, alphabet_size=63)) / order0_bits(symbols) - 1
    assert 0 < overhead < 0.0005


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_truncations_flips_and_lies(name: str, mode: str) -> None:
    rng = np.random.default_rng(3)
    symbols = {
        "one symbol": np.full(50, 3, dtype=np.uint8),
        "table": gaussian_symbols(40, std=2.0),
        # one symbol in ten thousand is rare, and a few of them are the tail
        "side words": np.where(rng.random(9000) < 1e-3, rng.integers(0, 63, 9000), 31).astype(
            np.uint8
        ),
    }[mode]
    stream = ans_encode(symbols, alphabet_size=63)
    assert stream[0] >> 6 == MODES[mode]
    step = 7 if name == "reference" and mode == "side words" else 1
    with backend(name):
        for size in range(0, len(stream), step):
            with pytest.raises(CorruptStreamError):
                ans_decode(stream[:size], count=symbols.size, alphabet_size=63)
        for count in (0, 1, symbols.size - 1, symbols.size + 1):
            if mode != "one symbol":
                with pytest.raises(CorruptStreamError):
                    ans_decode(stream, count=count, alphabet_size=63)
        for at in range(0, len(stream), step):
            for mask in (1, 0x10, 0x80):
                flipped = bytearray(stream)
                flipped[at] ^= mask
                try:
                    decoded = ans_decode(bytes(flipped), count=symbols.size, alphabet_size=63)
                except CorruptStreamError:
                    continue
                assert decoded.shape == symbols.shape
                assert decoded.max() < 63


@given(
    stream=st.binary(min_size=2, max_size=300),
    head=st.sampled_from([0x84, 0x8C, 0x44, 0x4C, 0xA4]),
    count=st.integers(0, 400),
)
def test_backends_judge_any_bytes_alike(stream: bytes, head: int, count: int) -> None:
    outcomes = []
    for name in BACKENDS:
        with backend(name):
            try:
                decoded = ans_decode(bytes([head]) + stream, count=count, alphabet_size=16)
                outcomes.append(decoded.tobytes())
            except CorruptStreamError:
                outcomes.append(b"refused")
    assert len(set(outcomes)) == 1


numbers = st.one_of(st.just(0), st.integers(0, 5), st.integers(0, 1 << 20), st.integers(0, 1 << 39))


@given(
    counts=st.lists(numbers, min_size=1, max_size=256).filter(any),
    prob_bits=st.sampled_from([8, 12]),
)
def test_same_choice_of_weights(counts: list[int], prob_bits: int) -> None:
    array = np.array(counts, dtype=np.int64)
    tables = set()
    for name in BACKENDS:
        with backend(name):
            tables.add(choose_weights(array, prob_bits=prob_bits))
    (table,) = tables
    for name in BACKENDS:
        with backend(name):
            weights, taken = decode_weights(table + b"\xff", alphabet_size=len(counts))
        assert taken == len(table)
        np.testing.assert_array_equal(weights > 0, array > 0)


@given(weights=st.lists(st.integers(0, 65535), min_size=1, max_size=256).filter(any))
def test_exact_weights_round_trip(weights: list[int]) -> None:
    table = encode_weights(weights, mantissa_bits=15)
    for name in BACKENDS:
        with backend(name):
            decoded, taken = decode_weights(table, alphabet_size=len(weights))
        assert decoded.tolist() == weights
        assert taken == len(table)


@given(table=st.binary(max_size=60), alphabet_size=st.sampled_from([1, 16, 63, 256]))
def test_tables_of_any_bytes_are_judged_alike(table: bytes, alphabet_size: int) -> None:
    outcomes = []
    for name in BACKENDS:
        with backend(name):
            try:
                weights, taken = decode_weights(table, alphabet_size=alphabet_size)
                outcomes.append((weights.tolist(), taken))
            except CorruptStreamError:
                outcomes.append(([], 0))
    assert all(outcome == outcomes[0] for outcome in outcomes)


def test_logarithms_are_far_from_where_rounding_would_differ() -> None:
    """The costs that choose a table are rounded logarithms, the same with every math library."""
    scaled = np.log2(np.arange(1, (1 << 15) + 1)) * (1 << 16)
    distance = np.abs(scaled - np.floor(scaled) - 0.5)
    assert distance.min() > 1e-7


def test_histograms_of_pairs() -> None:
    for count in (1 << 14, (1 << 14) + 5, 100_003):
        symbols = gaussian_symbols(count)
        np.testing.assert_array_equal(
            histogram(symbols, alphabet_size=63), np.bincount(symbols, minlength=63)
        )


@pytest.mark.parametrize("others", [0, 1, 40])
def test_large_planes_of_almost_one_symbol_stay_credible(others: int) -> None:
    """Readers accept 2**14 symbols a byte, and such streams would hold more."""
    for count in (100_000, 5_000_000, 20_000_000):
        symbols = np.full(count, 7, dtype=np.uint8)
        symbols[np.random.default_rng(others).integers(0, count, others)] = 9
        stream = ans_encode(symbols, alphabet_size=16)
        assert count <= (1 << 16) + (len(stream) << 14)
        assert len(stream) < 3000
        decoded = ans_decode(stream, count=count, alphabet_size=16)
        np.testing.assert_array_equal(decoded, symbols)


def test_planes_of_almost_one_symbol_are_coded_alike() -> None:
    symbols = np.full(100_000, 7, dtype=np.uint8)
    streams = set()
    for name in BACKENDS:
        with backend(name):
            streams.add(ans_encode(symbols, alphabet_size=16))
    assert len(streams) == 1


def test_costs_of_huge_counts_do_not_wrap() -> None:
    counts = np.array([1 << 44, 1 << 45, 3 << 43, 7], dtype=np.int64)
    tables = set()
    for name in BACKENDS:
        with backend(name):
            tables.add(choose_weights(counts, prob_bits=12))
    assert len(tables) == 1


def test_classes_of_rows_and_columns_go_together() -> None:
    symbols, rows = np.zeros(4, dtype=np.uint8), np.zeros(2, dtype=np.uint8)
    freqs = np.array([4095, 1], dtype=np.uint16)
    for name in BACKENDS:
        with backend(name), pytest.raises(InvalidArgumentError, match="go together"):
            rans_encode(symbols, freqs, prob_bits=12, ways=1, row_classes=rows)


def test_arguments_are_checked_before_memory_is_taken() -> None:
    hidden = np.zeros(1, dtype=np.uint16)
    freqs = np.array([4095, 1], dtype=np.uint16)
    for ways in (0, 3, 128, 2**31 - 1):
        with pytest.raises(InvalidArgumentError, match=f"ways={ways}"):
            rans_decode(b"1234", freqs, count=0, prob_bits=12, ways=ways, hidden=hidden)
    for alphabet_size in (0, 257):
        with pytest.raises(InvalidArgumentError, match="alphabet"):
            ans_decode(b"\0\1", count=3, alphabet_size=alphabet_size)
