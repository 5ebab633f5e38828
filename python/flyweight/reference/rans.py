"""Interleaved static range ANS, one symbol at a time: the executable specification.

A state is an integer in ``[LOWER, LOWER << WORD_BITS)``. Encoding runs from the last symbol to the
first and decoding from the first to the last, each step the exact inverse of the other.
"""

from __future__ import annotations

import struct
from itertools import accumulate

import numpy as np

from flyweight.errors import CorruptStreamError, InvalidArgumentError
from flyweight.reference.arrays import as_array
from flyweight.reference.freq_table import checked_freqs
from flyweight.typing import BytesLike, Freqs, Symbols

__all__ = ["rans_bound", "rans_decode", "rans_encode"]

LOWER = 1 << 16
WORD_BITS = 16
STATE_BYTES, WORD_BYTES = 4, 2
WAYS = (1, 2, 4, 8, 16, 32, 64)


def rans_bound(count: int, *, ways: int) -> int:
    """Upper bound in bytes: the states, and a word per symbol."""
    _check_ways(ways)
    _check_count(count)
    return STATE_BYTES * ways + WORD_BYTES * count


def rans_encode(symbols: Symbols, freqs: Freqs, *, prob_bits: int, ways: int) -> bytes:
    """Final states, then the words in the order in which the decoder reads them."""
    _check_ways(ways)
    table = checked_freqs(freqs, prob_bits=prob_bits)
    cums = [0, *accumulate(table)]
    sequence = as_array(symbols, "symbols", np.uint8, 1).tolist()
    _check_symbols(sequence, table)
    states = [LOWER] * ways
    words: list[int] = []
    for i in reversed(range(len(sequence))):
        freq, cum = table[sequence[i]], cums[sequence[i]]
        state = states[i % ways]
        if state >= freq << (32 - prob_bits):
            words.append(state & 0xFFFF)
            state >>= WORD_BITS
        states[i % ways] = (state // freq << prob_bits) + state % freq + cum
    return struct.pack(f"<{ways}I{len(words)}H", *states, *reversed(words))


def rans_decode(
    stream: BytesLike, freqs: Freqs, *, count: int, prob_bits: int, ways: int
) -> Symbols:
    """Inverse of :func:`rans_encode`; every word must be used and every state end at ``LOWER``."""
    _check_ways(ways)
    _check_count(count)
    table = checked_freqs(freqs, prob_bits=prob_bits)
    cums = [0, *accumulate(table)]
    symbol_of_slot = np.repeat(np.arange(len(table)), table).tolist()
    states, words = _split(as_array(stream, "stream", np.uint8, 1).tobytes(), ways)
    symbols, read = [], 0
    for i in range(count):
        state = states[i % ways]
        slot = state & ((1 << prob_bits) - 1)
        symbol = symbol_of_slot[slot]
        state = table[symbol] * (state >> prob_bits) + slot - cums[symbol]
        if state < LOWER:
            if read == len(words):
                raise CorruptStreamError(
                    f"rans: stream ends at byte {STATE_BYTES * ways + WORD_BYTES * read} while "
                    f"decoding symbol {i} of {count} in way {i % ways}"
                )
            state = state << WORD_BITS | words[read]
            read += 1
        states[i % ways] = state
        symbols.append(symbol)
    _check_end(states, len(words) - read)
    return np.array(symbols, dtype=np.uint8)


def _split(stream: bytes, ways: int) -> tuple[list[int], list[int]]:
    size = len(stream)
    if size < STATE_BYTES * ways:
        raise CorruptStreamError(
            f"rans: stream of {size} bytes cannot hold the {ways} states of {STATE_BYTES} bytes"
        )
    if (size - STATE_BYTES * ways) % WORD_BYTES:
        raise CorruptStreamError(
            f"rans: stream of {size} bytes ends within a word of {WORD_BYTES} bytes, "
            f"at byte {size - 1}"
        )
    numbers = struct.unpack(f"<{ways}I{size // WORD_BYTES - 2 * ways}H", stream)
    states, words = list(numbers[:ways]), list(numbers[ways:])
    for way, state in enumerate(states):
        if state < LOWER:
            raise CorruptStreamError(
                f"rans: state of way {way} at byte {STATE_BYTES * way} is below the lower bound "
                f"{LOWER}"
            )
    return states, words


def _check_end(states: list[int], words_left: int) -> None:
    if words_left:
        raise CorruptStreamError(
            f"rans: all symbols were decoded {WORD_BYTES * words_left} bytes before the end"
        )
    for way, state in enumerate(states):
        if state != LOWER:
            raise CorruptStreamError(f"rans: way {way} ends in state {state}, expected {LOWER}")


def _check_symbols(sequence: list[int], table: list[int]) -> None:
    for i, symbol in enumerate(sequence):
        if symbol >= len(table) or table[symbol] == 0:
            raise InvalidArgumentError(
                f"rans: symbol {symbol} at position {i} has no frequency in the alphabet of "
                f"{len(table)}"
            )


def _check_ways(ways: int) -> None:
    if ways not in WAYS:
        raise InvalidArgumentError(f"rans: got ways={ways}, expected a power of two up to 64")


def _check_count(count: int) -> None:
    if count < 0:
        raise InvalidArgumentError(f"got count={count}, expected 0 or more")
