"""Classes of rows and columns for the ctx codec, chosen from moments: the encoder's side only.

The model of a symbol is a Gaussian whose deviation is the product of one factor of its row and one
of its column, and whose mean is that deviation times a number of its column. All are estimated in a
few passes and rounded to classes, where a class costs what it takes to say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flyweight.codecs.ctx_tables import CENTER_UNITS, MAX_TABLES, MAX_TOP, ShapeFamily
from flyweight.typing import Counts, Symbols

__all__ = ["ClassPlan", "plan_classes"]

Floats = NDArray[np.floating[Any]]

MIN_SYMBOLS = 4096
MIN_LINE = 16
"""Rows and columns that a plane needs: shorter ones do not pay for their class."""
SAMPLE = 1 << 20
"""Symbols from which columns are estimated."""
MIN_SAMPLED_ROWS = 256
CHUNK = 1 << 18
SMALLEST = 1e-3
"""Keeps factors of rows and columns that are constant above zero."""
MIN_VARIANCE = 1 / 16
"""What a line without any information is coded with."""
SMALL_VARIANCE = 0.25
STEPS = (4, 5, 7, 10, 14, 20, 28)
"""Candidate steps between deviations, in 1/32 octave, up to the first that is worse."""
TABLE_COST = 2e-5
"""Bits per symbol that a table must save: decoders are faster with tables that fit into caches."""
MEAN_COUNTS = (1, 2, 3, 4, 6, 8, 12)
BITS_PER_NAT = 1.4426950408889634
GAUSSIAN_BITS = 2.0470955851
"""Information content of a Gaussian of variance 1, in bits: log2(2 * pi * e) / 2."""
MAP_BITS, MAP_BITS_PER_CLASS = 80.0, 5.0
"""About what the coded map of a line costs beside its information content."""


@dataclass(frozen=True, slots=True)
class ClassPlan:
    """Classes, tables, and what they should save."""

    rows: Symbols
    """(rows,) uint8, deviation classes."""
    columns: Symbols
    """(columns,) uint8, deviation classes; a symbol's deviation is the sum of both."""
    column_means: Symbols
    """(columns,) uint8, index of the mean."""
    family: ShapeFamily
    """The tables, with a first guess of ``top``."""
    saved_bits: float
    """Estimated gain over one exact table for all, side information subtracted."""


@dataclass(frozen=True, slots=True)
class _Axis:
    """Log2 variances of the rows, or of the columns, and how many symbols each has."""

    log_variance: Floats
    length: int


@dataclass(frozen=True, slots=True)
class _Deviations:
    """Classes of deviations, their step and largest in the family's units, and bits."""

    rows: Symbols
    columns: Symbols
    step: int
    top: float
    bits: float


@dataclass(frozen=True, slots=True)
class _Means:
    """Classes of means, the levels as in the family, and bits lost and spent."""

    classes: Symbols
    levels: tuple[int, ...]
    bits: float


def plan_classes(matrix: Symbols, counts: Counts) -> ClassPlan | None:
    """Classes of a matrix of symbols, or None where they cannot pay.

    Parameters
    ----------
    matrix : (rows, cols) uint8
    counts : (alphabet,) int64, its histogram
    """
    if matrix.size < MIN_SYMBOLS or min(matrix.shape) < MIN_LINE:
        return None
    center = int(np.rint(CENTER_UNITS * (counts @ np.arange(counts.size)) / matrix.size))
    rows, cols, col_means = _moments(matrix, center / CENTER_UNITS)
    axes = _Axis(np.log2(rows), matrix.shape[1]), _Axis(np.log2(cols), matrix.shape[0])
    best: tuple[float, _Means, _Deviations] | None = None
    for count in MEAN_COUNTS:
        means = _quantize_means(col_means, matrix.shape[0], count)
        deviations = _quantize_deviations(axes, count)
        if best is not None and means.bits + deviations.bits >= best[0]:
            break
        best = means.bits + deviations.bits, means, deviations
    assert best is not None
    _, means, deviations = best
    family = ShapeFamily(
        deviations=int(deviations.rows.max()) + int(deviations.columns.max()) + 1,
        step=deviations.step,
        top=int(np.clip(np.rint(deviations.top), 0, MAX_TOP)),
        center=center,
        means=means.levels,
        tail=0,
    )
    flat = float(counts @ np.log2(matrix.size / np.maximum(counts, 1)))
    bits = means.bits + _coded_bits(deviations)
    return ClassPlan(deviations.rows, deviations.columns, means.classes, family, flat - bits)


def _moments(matrix: Symbols, center: float) -> tuple[Floats, Floats, Floats]:
    """Variances of rows, variances of columns relative to those, means of columns in deviations."""
    stride = max(1, min(matrix.size // SAMPLE, matrix.shape[0] // MIN_SAMPLED_ROWS))
    sample = matrix[::stride].astype(np.float32) - center
    squares = sample * sample
    count, width = sample.shape
    cols: Floats = np.ones(width, dtype=np.float32)
    for _ in range(2):
        rows = squares @ (1 / cols) / width + SMALLEST
        cols = (1 / rows) @ squares / count + SMALLEST
    means = (1 / np.sqrt(rows)) @ sample / count / np.sqrt(cols)
    rows = np.empty(matrix.shape[0], dtype=np.float32)
    height = max(1, CHUNK // matrix.shape[1])
    for start in range(0, matrix.shape[0], height):
        block = matrix[start : start + height].astype(np.float32) - center
        rows[start : start + height] = np.square(block, out=block) @ (1 / cols)
    rows = np.maximum(rows / width, MIN_VARIANCE)
    cols *= np.maximum(1 - means * means, MIN_VARIANCE)
    return rows, cols, means


def _quantize_deviations(axes: tuple[_Axis, _Axis], means: int) -> _Deviations:
    """Classes of rows and columns with the best step, for so many means."""
    best: _Deviations | None = None
    for step in STEPS:
        classes = _limit([_classes(axis, step) for axis in axes], MAX_TABLES // means)
        bits = sum(_axis_bits(axis, c, step) for axis, c in zip(axes, classes, strict=True))
        spread = sum(int(c.max()) for c in classes)
        bits += TABLE_COST * axes[0].length * axes[1].length * spread * means
        if best is not None and bits >= best.bits:
            break
        top = sum(_grid_top(axis, c, step) for axis, c in zip(axes, classes, strict=True))
        best = _Deviations(classes[0], classes[1], step, 16 * top + 64, bits)
    assert best is not None
    return best


def _coded_bits(deviations: _Deviations) -> float:
    """About what symbols and classes cost, the former as Gaussians rounded to integers."""
    rows, cols = np.bincount(deviations.rows), np.bincount(deviations.columns)
    symbols = np.convolve(rows, cols)  # of each deviation
    below_top = np.arange(symbols.size - 1, -1, -1)
    variance = np.exp2(2 * (np.maximum(deviations.top - deviations.step * below_top, 0) / 32 - 2))
    bits = np.where(
        variance > SMALL_VARIANCE,
        GAUSSIAN_BITS + np.log2(variance) / 2,
        variance * (1 + BITS_PER_NAT - np.log2(variance)),  # zeros, and few ones of either sign
    )
    return float(symbols @ bits) + _map_bits(rows) + _map_bits(cols)


def _classes(axis: _Axis, step: int) -> Symbols:
    """Class of each line: the shortest symbols and class together, by three rounds of Lloyd."""
    unit = step / 16
    top = axis.log_variance.max()
    count = min(int((top - axis.log_variance.min()) / unit) + 2, MAX_TABLES)
    grid = top - unit * np.arange(count - 1, -1, -1, dtype=np.float32)
    misfit = np.exp2(axis.log_variance)[:, None] * np.exp2(-grid) * BITS_PER_NAT
    bits = (misfit + grid) * (axis.length / 2)
    classes = bits.argmin(axis=1)
    for _ in range(2):
        used = np.bincount(classes, minlength=count) + 0.05
        classes = (bits - np.log2(used / used.sum()).astype(np.float32)).argmin(axis=1)
    lowest: Symbols = (classes - classes.min()).astype(np.uint8)
    return lowest


def _limit(classes: list[Symbols], limit: int) -> list[Symbols]:
    """Classes whose sums are below ``limit``: small deviations are raised, large ones kept."""
    rows, cols = (int(c.max()) for c in classes)
    excess = max(rows + cols + 1 - limit, 0)
    from_cols = min(max((excess + cols - rows + 1) // 2, 0), excess, cols)
    raised = (excess - from_cols, from_cols)
    return [
        (np.maximum(c, r) - r).astype(np.uint8) if r else c
        for c, r in zip(classes, raised, strict=True)
    ]


def _axis_bits(axis: _Axis, classes: Symbols, step: int) -> float:
    """Half the log2 variances of all symbols, and bits of the classes."""
    below = (step / 16) * (int(classes.max()) * classes.size - int(classes.sum(dtype=np.int64)))
    total = _grid_top(axis, classes, step) * classes.size - below
    return axis.length / 2 * total + _map_bits(np.bincount(classes))


def _grid_top(axis: _Axis, classes: Symbols, step: int) -> float:
    """Log2 variance of the largest class that fits the lines best."""
    below = (step / 16) * (int(classes.max()) - classes.astype(np.float64))
    return float(np.log2(np.exp2(axis.log_variance + below).mean()))


def _map_bits(used: Counts) -> float:
    """About what it costs to say which line has which class."""
    used = used[used > 0]
    if used.size == 1:
        return 16.0
    information = float(used @ np.log2(used.sum() / used))
    return information + MAP_BITS + MAP_BITS_PER_CLASS * used.size


def _quantize_means(means: Floats, length: int, count: int) -> _Means:
    """The best levels, in 1/32 deviation, by some rounds of Lloyd."""
    levels = np.quantile(means, (np.arange(count) + 0.5) / count).astype(np.float32)
    for _ in range(8):
        classes = np.searchsorted((levels[1:] + levels[:-1]) / 2, means)
        sums = np.bincount(classes, weights=means, minlength=count)
        used = np.bincount(classes, minlength=count)
        levels = np.where(used > 0, sums / np.maximum(used, 1), levels).astype(np.float32)
    levels = np.clip(np.rint(levels * 32), -128, 127)
    lost = BITS_PER_NAT / 2 * length * float(np.square(means - levels[classes] / 32).sum())
    bits = lost + _map_bits(used) + 8 * count
    return _Means(classes.astype(np.uint8), tuple(int(level) for level in levels), bits)
