"""Counts and the integer frequencies that encoder and decoder share."""

from __future__ import annotations

import numpy as np

from flyweight.errors import InvalidArgumentError
from flyweight.reference.arrays import as_array, check_range
from flyweight.typing import Counts, Freqs, Symbols

__all__ = ["checked_freqs", "histogram", "normalize_counts"]

MIN_PROB_BITS, MAX_PROB_BITS = 8, 15
MAX_ALPHABET = 256
COUNT_LIMIT = 1 << 48


def histogram(symbols: Symbols, *, alphabet_size: int) -> Counts:
    """Occurrences of each symbol of the alphabet."""
    symbols = as_array(symbols, "symbols", np.uint8, 1)
    check_range("alphabet_size", alphabet_size, 1, MAX_ALPHABET)
    outside = np.flatnonzero(symbols >= alphabet_size)
    if outside.size:
        at = int(outside[0])
        raise InvalidArgumentError(
            f"histogram: symbol {symbols[at]} at position {at} is outside the alphabet of "
            f"{alphabet_size}"
        )
    return np.bincount(symbols, minlength=alphabet_size).astype(np.int64)


def normalize_counts(counts: Counts, *, prob_bits: int) -> Freqs:
    """Largest remainders, in exact integers; every seen symbol keeps at least one slot."""
    numbers = [int(count) for count in as_array(counts, "counts", np.int64, 1)]
    check_range("prob_bits", prob_bits, MIN_PROB_BITS, MAX_PROB_BITS)
    check_range("alphabet_size", len(numbers), 1, MAX_ALPHABET)
    if min(numbers) < 0:
        at = next(s for s, count in enumerate(numbers) if count < 0)
        raise InvalidArgumentError(
            f"normalize_counts: count of symbol {at} is negative: {numbers[at]}"
        )
    total, slots = sum(numbers), 1 << prob_bits
    if not 0 < total < COUNT_LIMIT:
        raise InvalidArgumentError(
            f"normalize_counts: counts sum to {total}, expected 1 to 2**48 - 1"
        )
    freqs = [max(1, count * slots // total) if count else 0 for count in numbers]
    missing = slots - sum(freqs)
    seen = [s for s, count in enumerate(numbers) if count]
    by_remainder = sorted(seen, key=lambda s: (-(numbers[s] * slots % total), s))
    for s in by_remainder[: max(0, missing)]:
        freqs[s] += 1
    for _ in range(-missing):
        freqs[freqs.index(max(freqs))] -= 1
    return np.array(freqs, dtype=np.uint16)


def checked_freqs(freqs: Freqs, *, prob_bits: int) -> list[int]:
    """Frequencies as exact integers, after the checks of every coder."""
    check_range("prob_bits", prob_bits, MIN_PROB_BITS, MAX_PROB_BITS)
    numbers = [int(freq) for freq in as_array(freqs, "freqs", np.uint16, 1)]
    check_range("alphabet_size", len(numbers), 1, MAX_ALPHABET)
    if sum(numbers) != 1 << prob_bits:
        raise InvalidArgumentError(
            f"rans: frequencies sum to {sum(numbers)}, expected 2**{prob_bits}"
        )
    return numbers
