"""Interleaved static range ANS, one symbol at a time: the executable specification.

A state is an integer in ``[LOWER, LOWER << WORD_BITS)``. Encoding runs from the last symbol to the
first and decoding from the first to the last, each step the exact inverse of the other.
"""

from __future__ import annotations

import struct
from itertools import accumulate

import numpy as np

from flyweight.errors import CorruptStreamError, InvalidArgumentError
from flyweight.reference.arrays import as_array, check_range
from flyweight.reference.freq_table import checked_freqs
from flyweight.typing import BytesLike, Freqs, Symbols, Words

__all__ = ["rans_bound", "rans_decode", "rans_encode"]

LOWER = 1 << 16
WORD_BITS = 16
STATE_BYTES, WORD_BYTES = 4, 2
WAYS = (1, 2, 4, 8, 16, 32, 64)
MAX_TABLES = 256


def rans_bound(count: int, *, ways: int) -> int:
    """Upper bound in bytes: the states, and a word per symbol."""
    _check_ways(ways)
    _check_count(count)
    return STATE_BYTES * ways + WORD_BYTES * count


def rans_encode(
    symbols: Symbols,
    freqs: Freqs,
    *,
    prob_bits: int,
    ways: int,
    row_classes: Symbols | None = None,
    col_classes: Symbols | None = None,
    hidden: Words | None = None,
) -> bytes:
    """Final states, then the words in the order in which the decoder reads them."""
    _check_ways(ways)
    tables = _checked_tables(freqs, prob_bits=prob_bits)
    sequence = as_array(symbols, "symbols", np.uint8, 1).tolist()
    table_of = _tables_of(len(tables), len(sequence), row_classes, col_classes)
    _check_symbols(sequence, tables, table_of)
    cums = [[0, *accumulate(table)] for table in tables]
    states = [LOWER | word for word in _checked_hidden(hidden, ways)]
    words: list[int] = []
    for i in reversed(range(len(sequence))):
        freq, cum = tables[table_of[i]][sequence[i]], cums[table_of[i]][sequence[i]]
        state = states[i % ways]
        if state >= freq << (32 - prob_bits):
            words.append(state & 0xFFFF)
            state >>= WORD_BITS
        states[i % ways] = (state // freq << prob_bits) + state % freq + cum
    return struct.pack(f"<{ways}I{len(words)}H", *states, *reversed(words))


def rans_decode(
    stream: BytesLike,
    freqs: Freqs,
    *,
    count: int,
    prob_bits: int,
    ways: int,
    row_classes: Symbols | None = None,
    col_classes: Symbols | None = None,
    hidden: Words | None = None,
) -> Symbols:
    """Inverse of :func:`rans_encode`; every word must be used and every state end at ``LOWER``."""
    _checked_hidden(hidden, ways)
    raw = as_array(stream, "stream", np.uint8, 1).tobytes()
    symbols, read, words = rans_decode_front(
        raw,
        freqs,
        count=count,
        prob_bits=prob_bits,
        ways=ways,
        row_classes=row_classes,
        col_classes=col_classes,
        has_hidden=hidden is not None,
    )
    if read != len(raw):
        raise CorruptStreamError(
            f"rans: all {count} symbols were decoded at byte {read} of {len(raw)}"
        )
    if hidden is not None:
        hidden[:] = words
    return symbols


def rans_decode_front(
    stream: bytes,
    freqs: Freqs,
    *,
    count: int,
    prob_bits: int,
    ways: int,
    has_hidden: bool,
    row_classes: Symbols | None = None,
    col_classes: Symbols | None = None,
) -> tuple[Symbols, int, list[int]]:
    """The symbols, the bytes that they took from the front of the stream, and the hidden words."""
    _check_ways(ways)
    _check_count(count)
    tables = _checked_tables(freqs, prob_bits=prob_bits)
    table_of = _tables_of(len(tables), count, row_classes, col_classes)
    cums = [[0, *accumulate(table)] for table in tables]
    symbol_of_slot = [np.repeat(np.arange(len(table)), table).tolist() for table in tables]
    states, words = _split(stream, ways)
    symbols, read = [], 0
    for i in range(count):
        state, table = states[i % ways], table_of[i]
        slot = state & ((1 << prob_bits) - 1)
        symbol = symbol_of_slot[table][slot]
        state = tables[table][symbol] * (state >> prob_bits) + slot - cums[table][symbol]
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
    at = STATE_BYTES * ways + WORD_BYTES * read
    for way, state in enumerate(states):
        if state >> WORD_BITS != 1 or (not has_hidden and state != LOWER):
            raise CorruptStreamError(
                f"rans: way {way} ends in state {state}, expected {LOWER}, at byte {at}"
            )
    return np.array(symbols, dtype=np.uint8), at, [state & 0xFFFF for state in states]


def _split(stream: bytes, ways: int) -> tuple[list[int], list[int]]:
    size = len(stream)
    if size < STATE_BYTES * ways:
        raise CorruptStreamError(
            f"rans: stream of {size} bytes cannot hold the {ways} states of {STATE_BYTES} bytes"
        )
    numbers = struct.unpack_from(f"<{ways}I{size // WORD_BYTES - 2 * ways}H", stream)
    states, words = list(numbers[:ways]), list(numbers[ways:])
    for way, state in enumerate(states):
        if state < LOWER:
            raise CorruptStreamError(
                f"rans: state of way {way} at byte {STATE_BYTES * way} is below the lower bound "
                f"{LOWER}"
            )
    return states, words


def _checked_tables(freqs: Freqs, *, prob_bits: int) -> list[list[int]]:
    ndim = freqs.ndim if isinstance(freqs, np.ndarray) and freqs.ndim == 2 else 1
    array = as_array(freqs, "freqs", np.uint16, ndim)
    rows = array if ndim == 2 else array[np.newaxis]
    check_range("tables", len(rows), 1, MAX_TABLES)
    return [checked_freqs(np.ascontiguousarray(row), prob_bits=prob_bits) for row in rows]


def _tables_of(
    tables: int, count: int, row_classes: Symbols | None, col_classes: Symbols | None
) -> list[int]:
    """The table of each symbol: row class plus column class, the last one where that is none."""
    if (not _size(row_classes)) != (not _size(col_classes)) and count > 0:
        raise InvalidArgumentError("rans: row and column classes go together")
    if row_classes is None or col_classes is None or len(col_classes) == 0:
        if tables > 1:
            raise InvalidArgumentError(f"rans: {tables} tables need row and column classes")
        return [0] * count
    rows = as_array(row_classes, "row_classes", np.uint8, 1).astype(np.int64)
    cols = as_array(col_classes, "col_classes", np.uint8, 1).astype(np.int64)
    if len(rows) * len(cols) != count:
        raise InvalidArgumentError(
            f"rans: {len(rows)} rows and {len(cols)} columns, but {count} symbols"
        )
    numbers: list[int] = np.minimum(rows[:, np.newaxis] + cols, tables - 1).ravel().tolist()
    return numbers


def _size(classes: Symbols | None) -> int:
    return 0 if classes is None else len(classes)


def _checked_hidden(hidden: Words | None, ways: int) -> list[int]:
    if hidden is None:
        return [0] * ways
    words: list[int] = as_array(hidden, "hidden", np.uint16, 1).tolist()
    if len(words) != ways:
        raise InvalidArgumentError(
            f"rans: got {len(words)} hidden words, expected one for each of {ways} ways"
        )
    return words


def _check_symbols(sequence: list[int], tables: list[list[int]], table_of: list[int]) -> None:
    for i, symbol in enumerate(sequence):
        table = tables[table_of[i]]
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
