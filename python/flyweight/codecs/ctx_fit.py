"""Tables of the ctx codec fitted to the symbols of their class: the encoder's side only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from flyweight.codecs.ctx_tables import MAX_TOP, PROB_BITS, ShapeFamily, drop_rare, family_weights
from flyweight.typing import AnyArray, Counts, Freqs, Symbols

__all__ = ["escape", "fit_family", "table_counts"]

TAILS = (2, 1 | 1 << 4)
"""Tails that are tried beside none: an eighth of twice the variance, a sixteenth of four times."""
ESCAPE_BITS = 5.0
"""About what an escaped symbol costs beside its escape."""
CHUNK = 1 << 17


def table_counts(matrix: Symbols, rows: Symbols, cols: Symbols, shape: tuple[int, int]) -> Counts:
    """Histogram of the symbols of every table.

    Parameters
    ----------
    matrix : (rows, cols) uint8 symbols
    rows, cols : (rows,) and (cols,) uint8; a symbol's table is the sum of its row's and column's
    shape : tables, alphabet

    Returns
    -------
    ``shape`` int64
    """
    counts = np.zeros(shape[0] * shape[1], dtype=np.int64)
    for keys in _keys(matrix, rows, cols, shape[1]):
        counts += np.bincount(keys, minlength=counts.size)
    return counts.reshape(shape)


def _keys(matrix: Symbols, rows: Symbols, cols: Symbols, alphabet: int) -> Iterator[AnyArray]:
    """Table and symbol as one number, for all symbols in order, some rows at a time."""
    height = max(1, CHUNK // cols.size)
    bases = cols.astype(np.intp) * alphabet
    for start in range(0, rows.size, height):
        keys = np.add.outer(rows[start : start + height].astype(np.intp) * alphabet, bases)
        keys += matrix[start : start + height]
        yield keys.reshape(-1)


def fit_family(family: ShapeFamily, counts: Counts) -> ShapeFamily:
    """The tail, and the largest deviation near the first guess, that code the counts best."""
    best_bits, best = _climb(family, counts)
    for tail in TAILS:
        bits, found = _climb(replace(best, tail=tail), counts)
        if bits < best_bits:
            best_bits, best = bits, found
    return best


def _climb(family: ShapeFamily, counts: Counts) -> tuple[float, ShapeFamily]:
    """Move the largest deviation as long as that helps."""
    best_bits, best = _code_bits(family, counts), family
    for direction in (-1, 1):
        while 0 <= best.top + direction <= MAX_TOP:
            found = replace(best, top=best.top + direction)
            bits = _code_bits(found, counts)
            if bits >= best_bits:
                break
            best_bits, best = bits, found
    return best_bits, best


def _code_bits(family: ShapeFamily, counts: Counts) -> float:
    """Code length of the counts, (tables, alphabet), escapes included."""
    weights = drop_rare(family_weights(family, alphabet_size=counts.shape[1])).astype(np.float64)
    shares = weights / weights.sum(axis=1, keepdims=True)
    rare = np.maximum(shares[:, -1:], 2.0**-PROB_BITS) * 2.0**-ESCAPE_BITS
    return float(-(counts * np.log2(np.where(shares > 0, shares, rare)[:, :-1])).sum())


def escape(matrix: Symbols, rows: Symbols, cols: Symbols, freqs: Freqs) -> tuple[Symbols, Symbols]:
    """Symbols with escapes for those without a frequency in their table, and the latter.

    Parameters
    ----------
    matrix, rows, cols : as for :func:`table_counts`
    freqs : (tables, alphabet + 1) uint16, the escape last

    Returns
    -------
    coded : (rows * cols,) uint8
    escaped : (n,) uint8, what the escapes stand for, in order
    """
    alphabet = freqs.shape[1] - 1
    is_rare = (freqs[:, :-1] == 0).reshape(-1)
    coded: Symbols = matrix.reshape(-1).copy()
    places = [np.zeros(0, dtype=np.intp)]
    start = 0
    for keys in _keys(matrix, rows, cols, alphabet):
        places.append(np.flatnonzero(is_rare.take(keys)) + start)
        start += keys.size
    where = np.concatenate(places)
    escaped = coded[where]
    coded[where] = alphabet
    return coded, escaped
