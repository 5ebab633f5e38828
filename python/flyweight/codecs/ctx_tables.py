"""Frequency tables of the ctx codec: Gaussian shapes, built by integers from a dozen bytes.

Every table is a discrete Gaussian, possibly with wider tails. Tables of one stream differ in their
deviation, a geometric series, and in their mean, a few multiples of the deviation. So a stream pays
for no table, and one tensor can have dozens. docs/format.md, "CTX", is the specification.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flyweight.errors import CorruptStreamError
from flyweight.kernels.rans import normalize_counts
from flyweight.typing import Counts, Freqs

__all__ = ["PROB_BITS", "ShapeFamily", "family_freqs", "family_weights", "read_family"]

PROB_BITS = 12
MAX_TABLES = 64
MAX_TOP = 384
"""A deviation of 1,024 symbols: flat."""
CENTER_UNITS = 64
"""Units of the center, and of all positions here, in a symbol."""
HALVING = 256
"""Steps of the exponent in which a weight halves."""
STEP_RATIO = 4283353945
"""2**32 * 2**(-1 / HALVING), rounded."""
GAUSSIAN = 47274
"""2**16 / (2 * ln 2), rounded: from squares over a variance to halvings."""
FIXED_FIELDS = struct.Struct("<BBHHBB")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeFamily:
    """What all tables of a stream follow from; table ``d * len(means) + m`` has deviation ``d``."""

    deviations: int
    """How many deviations there are, at least 1."""
    step: int
    """From one deviation to the next, in 1/32 octave, 0 to 255."""
    top: int
    """The largest deviation: ``2 ** (top / 32 - 2)`` symbols, 0 to 384."""
    center: int
    """Mean of a table of mean 0, in 1/64 symbol."""
    means: tuple[int, ...]
    """Distances of the means from the center, in 1/32 of the table's deviation, -128 to 127."""
    tail: int
    """Bits 0-3: sixteenths of the peak from a wider Gaussian; 4-7: log2 of its variance's ratio."""

    @property
    def tables(self) -> int:
        """How many tables there are."""
        return self.deviations * len(self.means)

    def to_bytes(self) -> bytes:
        """The fields as a stream stores them; see :func:`read_family`."""
        fixed = (self.deviations, len(self.means), self.center, self.top, self.step, self.tail)
        return FIXED_FIELDS.pack(*fixed) + struct.pack(f"<{len(self.means)}b", *self.means)


def read_family(stream: memoryview, *, alphabet_size: int) -> tuple[ShapeFamily, int]:
    """The family that a stream begins with, and the bytes that it took.

    Raises
    ------
    CorruptStreamError
        The bytes end early, there are no or more than 64 tables, or a field is out of range.
    """
    if len(stream) < FIXED_FIELDS.size:
        raise CorruptStreamError(
            f"ctx: {len(stream)} bytes of tables, expected at least {FIXED_FIELDS.size}"
        )
    deviations, count, center, top, step, tail = FIXED_FIELDS.unpack(stream[: FIXED_FIELDS.size])
    if not 1 <= deviations * count <= MAX_TABLES:
        raise CorruptStreamError(
            f"ctx: {deviations} deviations x {count} means, expected 1 to {MAX_TABLES} tables"
        )
    if center > CENTER_UNITS * (alphabet_size - 1):
        raise CorruptStreamError(
            f"ctx: center {center}/{CENTER_UNITS} is outside the alphabet of {alphabet_size}"
        )
    if top > MAX_TOP:
        raise CorruptStreamError(f"ctx: largest deviation {top}, expected at most {MAX_TOP}")
    taken = FIXED_FIELDS.size + count
    if len(stream) < taken:
        raise CorruptStreamError(f"ctx: {len(stream)} bytes of tables, expected {taken}")
    means = struct.unpack(f"<{count}b", stream[FIXED_FIELDS.size : taken])
    family = ShapeFamily(
        deviations=deviations, step=step, top=top, center=center, means=means, tail=tail
    )
    return family, taken


def family_weights(family: ShapeFamily, *, alphabet_size: int) -> Counts:
    """Weights of the symbols in every table, before rare ones are dropped.

    Parameters
    ----------
    alphabet_size : 1 to 255; the center is at most ``64 * (alphabet_size - 1)``

    Returns
    -------
    (tables, alphabet_size) int64, 0 to ``2 ** 35``

    Notes
    -----
    No intermediate needs more than 62 bits: a distance is less than 2**14 more than 4 deviations,
    of which the square of one times the curvature is below 2**43, and curvatures are below 2**31.
    """
    below_top = np.arange(family.deviations - 1, -1, -1, dtype=np.int64)
    exponent = np.repeat(np.maximum(family.top - family.step * below_top, 0), len(family.means))
    deviation = _halved(8 * (512 - exponent)) >> 11
    means = np.tile(np.array(family.means, dtype=np.int64), family.deviations)
    middle = family.center + (means * deviation >> 5)
    distance = CENTER_UNITS * np.arange(alphabet_size, dtype=np.int64) - middle[:, None]
    curvature = _halved(16 * exponent) * GAUSSIAN >> 16
    halvings = distance * distance * curvature[:, None] >> 31
    wide, ratio = family.tail & 15, family.tail >> 4
    return (16 - wide) * _halved(halvings) + wide * _halved(halvings >> ratio)


def drop_rare(weights: Counts) -> Counts:
    """Weights with an escape symbol at their end, for all symbols of less than one slot.

    Parameters
    ----------
    weights : (tables, alphabet) int64 of :func:`family_weights`

    Returns
    -------
    (tables, alphabet + 1) int64; symbols that have to be escaped have weight 0
    """
    total = weights.sum(axis=1, keepdims=True)
    is_rare = (weights << PROB_BITS < total) | (weights == 0)
    escaped = np.where(is_rare, weights, 0).sum(axis=1)
    escape = np.where(is_rare.any(axis=1), np.maximum(escaped, 1), 0)
    return np.column_stack([np.where(is_rare, 0, weights), escape])


def family_freqs(family: ShapeFamily, *, alphabet_size: int) -> Freqs:
    """Frequencies of every table, (tables, alphabet_size + 1) uint16, rows sum to ``1 << 12``."""
    weights = drop_rare(family_weights(family, alphabet_size=alphabet_size))
    return np.stack([normalize_counts(row, prob_bits=PROB_BITS) for row in weights])


def _halving_table() -> NDArray[np.int64]:
    """``2**31 * 2**(-i / 256)``, each from the one before, rounded down."""
    values = [1 << 31]
    while len(values) < HALVING:
        values.append(values[-1] * STEP_RATIO >> 32)
    return np.array(values, dtype=np.int64)


_HALVED = _halving_table()


def _halved(halvings: NDArray[np.int64]) -> NDArray[np.int64]:
    """About ``2**31 * 2**(-halvings / 256)``."""
    halved: NDArray[np.int64] = _HALVED[halvings & (HALVING - 1)]
    halved >>= np.minimum(halvings >> 8, 63)
    return halved
