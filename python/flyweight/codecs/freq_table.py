"""Frequency tables of ANS streams, coded in a few tens of bytes.

A table travels as one rough weight per symbol, a power of two with a few mantissa bits; both sides
turn the weights into frequencies with :func:`flyweight.kernels.rans.normalize_counts`. A relative
error ``e`` in a frequency costs about ``e**2 / 2`` nats a symbol, so four mantissa bits lose a few
bytes in a quarter of a million symbols and save half of the table.
"""

from __future__ import annotations

import numpy as np

from flyweight.errors import CorruptStreamError
from flyweight.kernels.rans import normalize_counts
from flyweight.typing import Counts, Freqs

__all__ = ["choose_table", "code_length", "decode_table", "encode_table"]

MAX_CLASS = 16
SYMBOL_FIELD_BITS = 8
MANTISSA_FIELD_BITS = 4
HEADER_BITS = 2 * SYMBOL_FIELD_BITS + MANTISSA_FIELD_BITS


def encode_table(weights: Counts, *, mantissa_bits: int) -> bytes:
    """Coded weights, LSB-first bits, zero-padded to a whole byte.

    Parameters
    ----------
    weights : (alphabet,) int64, 0 to 65535, each exact with ``mantissa_bits`` bits below its
        leading one
    mantissa_bits : 0 to 15

    References
    ----------
    docs/format.md, "Frequency tables".
    """
    bits = 0
    length = 0

    def put(value: int, width: int) -> None:
        nonlocal bits, length
        bits |= value << length
        length += width

    first, last = (int(end) for end in np.flatnonzero(weights)[[0, -1]])
    put(first, SYMBOL_FIELD_BITS)
    put(last, SYMBOL_FIELD_BITS)
    put(mantissa_bits, MANTISSA_FIELD_BITS)
    previous = 0
    for weight in weights[first : last + 1].tolist():
        size_class = weight.bit_length()
        delta = size_class - previous
        gamma = 2 * delta + 1 if delta >= 0 else -2 * delta
        zeros = gamma.bit_length() - 1
        put(1 << zeros, zeros + 1)  # zeros, then the leading one
        put(gamma - (1 << zeros), zeros)
        if size_class:
            stored = min(size_class - 1, mantissa_bits)
            put((weight >> (size_class - 1 - stored)) - (1 << stored), stored)
        previous = size_class
    return bits.to_bytes(-(-length // 8), "little")


def decode_table(stream: bytes | memoryview, *, alphabet_size: int) -> tuple[Counts, int]:
    """Weights of a coded table and the number of bytes that it took.

    Raises
    ------
    CorruptStreamError
        The bytes end early, a class is outside 0 to 16, padding is not zero, or the first or last
        symbol has no weight.
    """
    # No legal table is longer: the header, then at most 11 + 15 bits a symbol.
    window = bytes(stream[: (HEADER_BITS + 26 * alphabet_size + 7) // 8])
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
        gamma = (1 << zeros) + take(zeros)
        delta = (gamma - 1) // 2 if gamma % 2 else -(gamma // 2)
        size_class += delta
        if not 0 <= size_class <= MAX_CLASS:
            raise CorruptStreamError(
                f"frequency table: symbol {symbol} has class {size_class}, not 0 to {MAX_CLASS}"
            )
        if size_class:
            stored = min(size_class - 1, mantissa_bits)
            weights[symbol] = ((1 << stored) + take(stored)) << (size_class - 1 - stored)
    taken = -(-position // 8)
    if bits >> position & ((1 << (8 * taken - position)) - 1):
        raise CorruptStreamError(f"frequency table: padding bits at byte {taken - 1} are not zero")
    if not (weights[first] and weights[last]):
        raise CorruptStreamError(f"frequency table: symbol {first} or {last} has no weight")
    return weights, taken


def choose_table(counts: Counts, *, prob_bits: int) -> tuple[bytes, Freqs]:
    """The coded table that makes table plus stream smallest, of those that were tried.

    Parameters
    ----------
    counts : (alphabet,) int64 occurrences, at least two symbols seen
    prob_bits : 8 to 15

    Returns
    -------
    table : coded weights
    freqs : (alphabet,) uint16 that a decoder derives from them
    """
    best: tuple[float, Counts, int, Freqs] | None = None
    for top_bits in range(4, MAX_CLASS + 1, 2):
        for mantissa_bits in range(min(top_bits, 7)):
            weights = _rounded_weights(counts, top_bits=top_bits, mantissa_bits=mantissa_bits)
            freqs = normalize_counts(weights, prob_bits=prob_bits)
            total = _table_bits(weights, mantissa_bits=mantissa_bits)
            total += code_length(counts, freqs, prob_bits=prob_bits)
            if best is None or total < best[0]:
                best = (total, weights, mantissa_bits, freqs)
    assert best is not None
    _, weights, mantissa_bits, freqs = best
    return encode_table(weights, mantissa_bits=mantissa_bits), freqs


def code_length(counts: Counts, freqs: Freqs, *, prob_bits: int) -> float:
    """Ideal code length of the counts under the frequencies, in bits."""
    seen = counts > 0
    return float(counts[seen] @ (prob_bits - np.log2(freqs[seen].astype(np.float64))))


def _table_bits(weights: Counts, *, mantissa_bits: int) -> float:
    """Length of :func:`encode_table` in bits, before the padding."""
    first, last = np.flatnonzero(weights)[[0, -1]]
    classes = np.frexp(weights[first : last + 1].astype(np.float64))[1]
    delta = np.diff(classes, prepend=0)
    gamma = np.where(delta >= 0, 2 * delta + 1, -2 * delta)
    gamma_bits = 2 * np.frexp(gamma.astype(np.float64))[1] - 1
    stored = np.clip(classes - 1, 0, mantissa_bits)
    return float(HEADER_BITS + gamma_bits.sum() + stored.sum())


def _rounded_weights(counts: Counts, *, top_bits: int, mantissa_bits: int) -> Counts:
    """Counts scaled so that the largest has ``top_bits`` bits, rounded to the mantissa."""
    largest = (1 << top_bits) - 1
    scaled = np.maximum(np.rint(counts * (largest / counts.max())).astype(np.int64), 1)
    drop = np.maximum(np.frexp(scaled.astype(np.float64))[1] - 1 - mantissa_bits, 0)
    half = (np.int64(1) << drop) >> 1
    highest = ((1 << MAX_CLASS) - 1) >> drop << drop  # rounding up must not leave the last class
    rounded: Counts = np.minimum(((scaled + half) >> drop) << drop, highest)
    return np.where(counts > 0, rounded, 0)
