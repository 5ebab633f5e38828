"""Hostile streams: a typed error or other symbols, never a crash, never the same symbols.

Encoder and decoder steps are inverse to each other, so a changed stream that still decodes must
decode to something else.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import BACKENDS, gaussian_symbols, table_of
from flyweight.errors import CorruptStreamError
from flyweight.kernels import backend, rans_decode, rans_encode
from flyweight.typing import Freqs, Symbols

COUNT, PROB_BITS = 40, 10
CASES = list(itertools.product(BACKENDS, (1, 4)))


def stream_of(ways: int) -> tuple[bytes, Symbols, Freqs]:
    symbols = gaussian_symbols(COUNT)
    freqs = table_of(symbols, 63, PROB_BITS)
    return rans_encode(symbols, freqs, prob_bits=PROB_BITS, ways=ways), symbols, freqs


def outcome(
    stream: bytes, freqs: Freqs, ways: int, count: int = COUNT, prob_bits: int = PROB_BITS
) -> Symbols | str:
    """The symbols, or the message of the typed error; anything else fails the test."""
    try:
        return rans_decode(stream, freqs, count=count, prob_bits=prob_bits, ways=ways)
    except CorruptStreamError as error:
        return str(error)


@pytest.mark.parametrize(("name", "ways"), CASES)
def test_every_truncation(name: str, ways: int) -> None:
    stream, _, freqs = stream_of(ways)
    with backend(name):
        for size in range(len(stream)):
            message = outcome(stream[:size], freqs, ways)
            assert isinstance(message, str)
            assert "byte" in message


@pytest.mark.parametrize(("name", "ways"), CASES)
def test_every_flip_of_one_byte(name: str, ways: int) -> None:
    stream, symbols, freqs = stream_of(ways)
    values = range(1, 256) if name == "scalar" else (1, 0x80, 0xFF)
    with backend(name):
        for at, mask in itertools.product(range(len(stream)), values):
            flipped = bytearray(stream)
            flipped[at] ^= mask
            result = outcome(bytes(flipped), freqs, ways)
            assert isinstance(result, str) or not np.array_equal(result, symbols)


@pytest.mark.parametrize(("name", "ways"), CASES)
def test_surplus_bytes(name: str, ways: int) -> None:
    stream, _, freqs = stream_of(ways)
    with backend(name):
        for extra in (b"\0", b"\0\0", b"\xff" * 7, b"\1" * 64):
            assert isinstance(outcome(stream + extra, freqs, ways), str)


@pytest.mark.parametrize(("name", "ways"), CASES)
@pytest.mark.parametrize("count", [0, 1, COUNT - 1, COUNT + 1, 100 * COUNT])
def test_lying_counts(name: str, ways: int, count: int) -> None:
    stream, _, freqs = stream_of(ways)
    with backend(name):
        assert isinstance(outcome(stream, freqs, ways, count=count), str)


@pytest.mark.parametrize("name", BACKENDS)
def test_states_below_the_lower_bound(name: str) -> None:
    stream, _, freqs = stream_of(4)
    with backend(name):
        message = outcome(stream[:4] + b"\xff\xff\0\0" + stream[8:], freqs, 4)
    assert message == "rans: state of way 1 at byte 4 is below the lower bound 65536"


def test_messages_say_where() -> None:
    stream, _, freqs = stream_of(4)
    size = len(stream)
    short = outcome(stream[:-2], freqs, 4)
    assert isinstance(short, str)
    assert short.startswith(f"rans: stream ends at byte {size - 2} while decoding symbol ")
    long = outcome(stream + b"\0\0", freqs, 4)
    assert long == (
        f"rans: all 40 symbols were decoded at byte {size} of {size + 2}, the last in way 3"
    )
    assert outcome(b"", freqs, 4) == ("rans: stream of 0 bytes cannot hold the 4 states of 4 bytes")


@given(
    stream=st.binary(max_size=200),
    ways=st.sampled_from((1, 2, 64)),
    count=st.integers(0, 300),
    skew=st.integers(1, 255),
)
def test_backends_judge_any_bytes_alike(stream: bytes, ways: int, count: int, skew: int) -> None:
    freqs = np.array([skew, 256 - skew], dtype=np.uint16)
    with backend("reference"):
        expected = outcome(stream, freqs, ways, count=count, prob_bits=8)
    result = outcome(stream, freqs, ways, count=count, prob_bits=8)
    assert type(result) is type(expected)
    if isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(result, expected)
