"""ANS streams with their table, one symbol at a time: the executable specification.

The tail (the last symbols) and the rare symbols are a second stream of one way, whose first words
ride in the states of the main one (docs/format.md, "ANS").
"""

from __future__ import annotations

import numpy as np

from flyweight.errors import CorruptStreamError, InvalidArgumentError
from flyweight.reference.arrays import as_array
from flyweight.reference.freq_table import histogram, normalize_counts
from flyweight.reference.rans import LOWER, STATE_BYTES, rans_decode_front, rans_encode
from flyweight.reference.weights import (
    COST_SHIFT,
    SplitTables,
    choose_weights,
    decode_weights,
    ideal_cost,
    split_weights,
)
from flyweight.typing import BytesLike, Counts, Symbols

__all__ = ["ans_decode", "ans_encode"]

MIN_PROB_BITS = 8
PROB_BITS = 12
MODE_SINGLE, MODE_TABLE, MODE_SIDE = 0, 1, 2
SINGLE_BYTES = 2
MAX_TAIL = 4096
BYTES_PER_WAY = 768
MAX_WAYS = 64
WAYS_FOR_TAIL = 4


def ans_encode(symbols: Symbols, *, alphabet_size: int) -> bytes:
    """Header, table, tail count, states, words, and the side words that the states do not hold."""
    counts = histogram(symbols, alphabet_size=alphabet_size)
    if np.count_nonzero(counts) <= 1 and is_credible(symbols.size, SINGLE_BYTES):
        return bytes([MODE_SINGLE << 6, int(counts.argmax())])
    table, tables, expected_bytes = _plan(counts)
    if not is_credible(symbols.size, expected_bytes) and alphabet_size > 1:
        table, tables, expected_bytes = _plan(less_certain(counts))
    ways = choose_ways(expected_bytes)
    has_side = tables.rare_freqs is not None or ways >= WAYS_FOR_TAIL
    header = (PROB_BITS - MIN_PROB_BITS) | (ways.bit_length() - 1) << 3
    coded = [stand_in(int(symbol), tables) for symbol in symbols]
    words: list[int] = []
    tail = 0
    if has_side:
        words, tail = _encode_side(symbols.tolist(), coded, tables, ways)
    hidden = (words + [0] * ways)[:ways] if has_side else [0] * ways
    body = rans_encode(
        np.array(coded[: len(coded) - tail], dtype=np.uint8),
        np.array(tables.freqs, dtype=np.uint16),
        prob_bits=PROB_BITS,
        ways=ways,
        hidden=np.array(hidden, dtype=np.uint16),
    )
    behind = b"".join(word.to_bytes(2, "little") for word in words[ways:])
    if not has_side:
        return bytes([header | MODE_TABLE << 6]) + table + body
    return bytes([header | MODE_SIDE << 6]) + table + _varint(tail) + body + behind


def ans_decode(stream: BytesLike, *, count: int, alphabet_size: int) -> Symbols:
    """Inverse of :func:`ans_encode`."""
    raw = as_array(stream, "stream", np.uint8, 1).tobytes()
    if count < 0:
        raise InvalidArgumentError(f"got count={count}, expected 0 or more")
    if len(raw) < 2:
        raise CorruptStreamError(f"ans: stream has {len(raw)} bytes, expected at least 2")
    mode, ways, prob_bits = raw[0] >> 6, 1 << (raw[0] >> 3 & 7), MIN_PROB_BITS + (raw[0] & 7)
    if mode > MODE_SIDE or ways > MAX_WAYS:
        raise CorruptStreamError(f"ans: table mode {mode}, {ways} ways is not defined")
    if mode == MODE_SINGLE:
        if raw[0] or len(raw) != 2 or raw[1] >= alphabet_size:
            raise CorruptStreamError(
                f"ans: a one-symbol stream is a zero byte and a symbol below {alphabet_size}, "
                f"got {len(raw)} bytes"
            )
        return np.full(count, raw[1], dtype=np.uint8)
    weights, taken = decode_weights(raw[1:], alphabet_size=alphabet_size)
    rest = raw[1 + taken :]
    if mode == MODE_TABLE:
        freqs = normalize_counts(weights, prob_bits=prob_bits)
        symbols, read, _ = rans_decode_front(
            rest, freqs, count=count, prob_bits=prob_bits, ways=ways, has_hidden=False
        )
        if read != len(rest):
            raise CorruptStreamError(f"ans: {len(rest) - read} bytes are left over")
        return symbols
    tail, taken = _take_varint(rest)
    if tail > count:
        raise CorruptStreamError(f"ans: a tail of {tail} symbols, but there are {count}")
    tables = split_weights(weights.tolist(), prob_bits=prob_bits)
    main, read, hidden = rans_decode_front(
        rest[taken:],
        np.array(tables.freqs, dtype=np.uint16),
        count=count - tail,
        prob_bits=prob_bits,
        ways=ways,
        has_hidden=True,
    )
    behind = rest[taken + read :]
    if len(behind) % 2:
        raise CorruptStreamError("ans: stream ends within a word of 2 bytes")
    words = hidden + np.frombuffer(behind, dtype="<u2").tolist()
    return _decode_side(words, ways, main.tolist(), tables, tail, prob_bits)


def is_credible(count: int, size: int) -> bool:
    """Whether readers accept so many symbols in so many bytes (docs/format.md, "Parts")."""
    return count <= (1 << 16) + (size << 14)


def less_certain(counts: Counts) -> Counts:
    """Counts in which the second symbol has two slots, so that streams get long enough."""
    changed = counts.copy()
    first = int(changed.argmax())
    changed[first] = -1
    second = int(changed.argmax())
    changed[first] = counts[first]
    changed[second] = max(int(changed[second]), int(counts.sum()) // 2000 + 1)
    return changed


def choose_ways(expected_bytes: int) -> int:
    """Ways of a stream: more where decoding speed pays for what they cost, a byte or two each."""
    return min(1 << (max(expected_bytes // BYTES_PER_WAY, 1).bit_length() - 1), MAX_WAYS)


def stand_in(symbol: int, tables: SplitTables) -> int:
    """What the main stream codes for a symbol: the escape if it is rare."""
    is_rare = tables.rare_freqs is not None and tables.rare_freqs[symbol] > 0
    return tables.escape if is_rare else symbol


def _plan(counts: Counts) -> tuple[bytes, SplitTables, int]:
    """The coded table, what it means, and the bytes that the counted symbols take by it."""
    table = choose_weights(counts, prob_bits=PROB_BITS)
    weights, _ = decode_weights(table, alphabet_size=counts.size)
    tables = split_weights(weights.tolist(), prob_bits=PROB_BITS)
    cost = ideal_cost(counts.tolist(), tables, prob_bits=PROB_BITS)
    return table, tables, cost >> (COST_SHIFT + 3)


def _encode_side(
    symbols: list[int], coded: list[int], tables: SplitTables, ways: int
) -> tuple[list[int], int]:
    """Words in the order in which a decoder reads them, and how many symbols are in the tail."""
    state, words = LOWER, list[int]()
    limit_shift = 32 - PROB_BITS

    def push(freqs: list[int], symbol: int) -> None:
        nonlocal state
        if state >= freqs[symbol] << limit_shift:
            words.append(state & 0xFFFF)
            state >>= 16
        quotient, remainder = divmod(state, freqs[symbol])
        state = (quotient << PROB_BITS) + remainder + sum(freqs[:symbol])

    if tables.rare_freqs is not None:
        for symbol in reversed(symbols):
            if tables.rare_freqs[symbol]:
                push(tables.rare_freqs, symbol)
    tail = 0
    while tail < min(len(coded), MAX_TAIL):
        symbol = coded[len(coded) - 1 - tail]
        emits = state >= tables.freqs[symbol] << limit_shift
        if len(words) + STATE_BYTES // 2 + emits > ways:
            break
        push(tables.freqs, symbol)
        tail += 1
    return [state & 0xFFFF, state >> 16, *reversed(words)], tail


def _decode_side(
    words: list[int], ways: int, main: list[int], tables: SplitTables, tail: int, prob_bits: int
) -> Symbols:
    read = 0

    def take() -> int:
        nonlocal read
        if read == len(words):
            raise CorruptStreamError("ans: stream ends within the side words")
        read += 1
        return words[read - 1]

    state = take() | take() << 16
    if state < LOWER:
        raise CorruptStreamError(f"ans: the state of the side words is below {LOWER}")

    def pop(freqs: list[int]) -> int:
        nonlocal state
        slot = state & ((1 << prob_bits) - 1)
        symbol = cum = 0
        while cum + freqs[symbol] <= slot:
            cum += freqs[symbol]
            symbol += 1
        state = freqs[symbol] * (state >> prob_bits) + slot - cum
        if state < LOWER:
            state = state << 16 | take()
        return symbol

    symbols = main + [pop(tables.freqs) for _ in range(tail)]
    if tables.rare_freqs is not None:
        symbols = [pop(tables.rare_freqs) if s == tables.escape else s for s in symbols]
    rest = words[read:]
    if state != LOWER or (rest and (len(words) > ways or any(rest))):
        raise CorruptStreamError(
            f"ans: the side words do not end where they should, {len(rest)} before the end"
        )
    return np.array(symbols, dtype=np.uint8)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _take_varint(stream: bytes) -> tuple[int, int]:
    value = 0
    for at, byte in enumerate(stream[:9]):
        value |= (byte & 127) << 7 * at
        if byte < 128:
            if byte == 0 and at > 0:
                break
            return value, at + 1
    raise CorruptStreamError("ans: the number of tail symbols is no varint")
