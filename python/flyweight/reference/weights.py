"""Frequency tables as they travel, one rough weight per symbol: the executable specification.

A weight is a power of two with a few mantissa bits; both sides turn weights into frequencies with
:func:`flyweight.reference.freq_table.normalize_counts`. A relative error ``e`` in a frequency costs
about ``e**2 / 2`` nats a symbol, so four mantissa bits lose a few bytes in a quarter of a million
symbols and save half of the table.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from flyweight.errors import CorruptStreamError
from flyweight.reference.arrays import as_array, check_range
from flyweight.reference.freq_table import normalize_counts
from flyweight.typing import BytesLike, Counts

__all__ = ["choose_weights", "decode_weights"]

MAX_CLASS = 16
MAX_ZEROS = 5
SYMBOL_FIELD_BITS = 8
MANTISSA_FIELD_BITS = 4
HEADER_BITS = 2 * SYMBOL_FIELD_BITS + MANTISSA_FIELD_BITS
SMALL_COUNT = 4096
COST_SHIFT = 16


class SplitTables(NamedTuple):
    """What weights mean: symbols with a share of less than one slot stand behind an escape."""

    freqs: list[int]
    rare_freqs: list[int] | None
    escape: int


def choose_weights(counts: Counts, *, prob_bits: int) -> bytes:
    """The coded weights that make table plus symbols smallest, of those that are tried."""
    numbers = as_array(counts, "counts", np.int64, 1).tolist()
    check_range("alphabet_size", len(numbers), 1, 256)
    normalize_counts(counts, prob_bits=prob_bits)  # refuses what both refuse
    best: tuple[int, list[int], int] | None = None
    for top_bits, mantissa_bits in _trials(numbers):
        weights = _rounded(numbers, top_bits=top_bits, mantissa_bits=mantissa_bits)
        cost = _coded_bits(weights, mantissa_bits=mantissa_bits) << COST_SHIFT
        cost += ideal_cost(
            numbers, split_weights(weights, prob_bits=prob_bits), prob_bits=prob_bits
        )
        if best is None or cost < best[0]:
            best = (cost, weights, mantissa_bits)
    assert best is not None
    return encode_weights(best[1], mantissa_bits=best[2])


def split_weights(weights: list[int], *, prob_bits: int) -> SplitTables:
    """Frequencies of the symbols, and of the rare ones among themselves."""
    total = sum(weights)
    rare = [w if 0 < w << prob_bits < total else 0 for w in weights]
    main = [0 if r else w for w, r in zip(weights, rare, strict=True)]
    if not any(rare):
        return SplitTables(_normalized(main, prob_bits), None, 0)
    escape = next(s for s, w in enumerate(rare) if w)
    main[escape] = sum(rare)
    return SplitTables(_normalized(main, prob_bits), _normalized(rare, prob_bits), escape)


def encode_weights(weights: list[int], *, mantissa_bits: int) -> bytes:
    """Coded weights, LSB-first bits, zero-padded to a whole byte (docs/format.md)."""
    bits = length = 0

    def put(value: int, width: int) -> None:
        nonlocal bits, length
        bits |= value << length
        length += width

    first, last = _seen_range(weights)
    put(first, SYMBOL_FIELD_BITS)
    put(last, SYMBOL_FIELD_BITS)
    put(mantissa_bits, MANTISSA_FIELD_BITS)
    previous = 0
    for weight in weights[first : last + 1]:
        size_class = weight.bit_length()
        gamma = _gamma(previous, size_class)
        zeros = gamma.bit_length() - 1
        put(1 << zeros, zeros + 1)  # zeros, then the leading one
        put(gamma - (1 << zeros), zeros)
        if size_class:
            stored = min(size_class - 1, mantissa_bits)
            put((weight >> (size_class - 1 - stored)) - (1 << stored), stored)
        previous = size_class
    return bits.to_bytes(-(-length // 8), "little")


def decode_weights(stream: BytesLike, *, alphabet_size: int) -> tuple[Counts, int]:
    """Inverse of :func:`encode_weights`, and the number of bytes that it took."""
    check_range("alphabet_size", alphabet_size, 1, 256)
    # No legal table is longer: the header, then at most 11 + 15 bits a symbol.
    raw = as_array(stream, "stream", np.uint8, 1).tobytes()
    window = raw[: (HEADER_BITS + 26 * alphabet_size + 7) // 8]
    bits = int.from_bytes(window, "little")
    position = 0

    def take(width: int) -> int:
        nonlocal position
        position += width
        if position > 8 * len(window):
            raise CorruptStreamError(f"frequency table ends early, at byte {len(window)}")
        return (bits >> (position - width)) & ((1 << width) - 1)

    first, last = take(SYMBOL_FIELD_BITS), take(SYMBOL_FIELD_BITS)
    if not first <= last < alphabet_size:
        raise CorruptStreamError(
            f"frequency table: symbols {first} to {last} of an alphabet of {alphabet_size}"
        )
    mantissa_bits = take(MANTISSA_FIELD_BITS)
    weights = np.zeros(alphabet_size, dtype=np.int64)
    size_class = 0
    for symbol in range(first, last + 1):
        zeros = 0
        while take(1) == 0:
            zeros += 1
            if zeros > MAX_ZEROS:
                raise CorruptStreamError(
                    f"frequency table: the class of symbol {symbol} changes by more than 16"
                )
        gamma = (1 << zeros) + take(zeros)
        size_class += (gamma - 1) // 2 if gamma % 2 else -(gamma // 2)
        if not 0 <= size_class <= MAX_CLASS:
            raise CorruptStreamError(
                f"frequency table: symbol {symbol} has class {size_class}, not 0 to {MAX_CLASS}"
            )
        if size_class:
            stored = min(size_class - 1, mantissa_bits)
            weights[symbol] = ((1 << stored) + take(stored)) << (size_class - 1 - stored)
    if not (weights[first] and weights[last]):
        raise CorruptStreamError(f"frequency table: symbol {first} or {last} has no weight")
    taken = -(-position // 8)
    if bits >> position & ((1 << (8 * taken - position)) - 1):
        raise CorruptStreamError(f"frequency table: padding bits at byte {taken - 1} are not zero")
    return weights, taken


def _trials(counts: list[int]) -> list[tuple[int, int]]:
    """Bits of the largest weight and mantissa bits; see ``weights.cpp`` for the choice."""
    total, seen = sum(counts), sum(count > 0 for count in counts)
    if total < SMALL_COUNT:
        return [(top, m) for top in range(4, MAX_CLASS + 1, 2) for m in range(min(top, 5))]
    best = min((total // (24 * seen)).bit_length() // 2, 8)
    return [(MAX_CLASS, m) for m in range(max(best - 1, 0), best + 2)]


def _rounded(counts: list[int], *, top_bits: int, mantissa_bits: int) -> list[int]:
    """Counts scaled so that the largest has ``top_bits`` bits, rounded to the mantissa."""
    drop_counts = max(max(counts).bit_length() - 32, 0)
    largest = max(counts) >> drop_counts
    weights = []
    for count in counts:
        if not count:
            weights.append(0)
            continue
        scaled = (2 * (count >> drop_counts) * ((1 << top_bits) - 1) + largest) // (2 * largest)
        scaled = max(scaled, 1)
        drop = scaled.bit_length() - 1 - min(scaled.bit_length() - 1, mantissa_bits)
        highest = ((1 << MAX_CLASS) - 1) >> drop << drop
        weights.append(min((scaled + ((1 << drop) >> 1)) >> drop << drop, highest))
    return weights


def _coded_bits(weights: list[int], *, mantissa_bits: int) -> int:
    """Length of :func:`encode_weights` in bits, before the padding."""
    first, last = _seen_range(weights)
    classes = [0, *(weight.bit_length() for weight in weights[first : last + 1])]
    gammas = sum(2 * (_gamma(a, b).bit_length() - 1) + 1 for a, b in pairwise(classes))
    return HEADER_BITS + gammas + sum(min(k - 1, mantissa_bits) for k in classes if k)


def ideal_cost(counts: list[int], tables: SplitTables, *, prob_bits: int) -> int:
    """Ideal code length in bits times 2**16, from a table of rounded logarithms."""
    cost = 0
    for symbol, count in enumerate(counts):
        is_rare = tables.rare_freqs is not None and tables.rare_freqs[symbol] > 0
        if count:
            cost += count * _bits(tables.freqs[tables.escape if is_rare else symbol], prob_bits)
        if count and is_rare and tables.rare_freqs is not None:
            cost += count * _bits(tables.rare_freqs[symbol], prob_bits)
    return cost


def _bits(freq: int, prob_bits: int) -> int:
    return (prob_bits << COST_SHIFT) - round(math.log2(freq) * (1 << COST_SHIFT))


def _normalized(weights: list[int], prob_bits: int) -> list[int]:
    freqs: list[int] = normalize_counts(np.array(weights), prob_bits=prob_bits).tolist()
    return freqs


def _seen_range(weights: list[int]) -> tuple[int, int]:
    seen = [s for s, weight in enumerate(weights) if weight]
    return seen[0], seen[-1]


def _gamma(before: int, after: int) -> int:
    return 2 * (after - before) + 1 if after >= before else 2 * (before - after)
