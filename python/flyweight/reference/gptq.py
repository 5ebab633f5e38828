"""GPTQ column updates without blocks: the algorithm, nothing else.

References
----------
Frantar et al. 2022, "GPTQ", arXiv:2210.17323, algorithm 1.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from flyweight.errors import InvalidArgumentError
from flyweight.reference.arrays import as_array, check_range
from flyweight.typing import AnyArray, Codes

__all__ = ["gptq_quantize", "quantize_columns"]

Float = TypeVar("Float", np.float32, np.float64)


def gptq_quantize(
    weights: NDArray[np.float32],
    inverse_factor: NDArray[np.float32],
    scales: NDArray[np.float32],
    *,
    column_groups: NDArray[np.int32] | None = None,
    zero_points: NDArray[np.float32] | None = None,
    lo: int,
    hi: int,
    block_cols: int = 128,
    threads: int = 1,
) -> Codes:
    """Codes of every weight; neither ``block_cols`` nor ``threads`` changes the result anywhere."""
    weights = as_array(weights, "weights", np.float32, 2)
    inverse_factor = as_array(inverse_factor, "inverse_factor", np.float32, 2)
    scales = as_array(scales, "scales", np.float32, 2)
    if zero_points is None:
        zero_points = np.zeros_like(scales)
    zero_points = as_array(zero_points, "zero_points", np.float32, 2)
    (rows, cols), groups = weights.shape, scales.shape[1]
    _check_matrix("inverse_factor", inverse_factor, (cols, cols))
    _check_matrix("scales", scales, (rows, groups))
    _check_matrix("zero_points", zero_points, (rows, groups))
    _check_codes(lo, hi, block_cols)
    if threads < 1:
        raise InvalidArgumentError(f"gptq: got threads={threads}, expected 1 or more")
    column_groups = _checked_groups(column_groups, cols, groups)
    _check_matrix("weights", weights, (rows, cols))
    _check_diagonal(inverse_factor)
    scales_of_columns, zeros_of_columns = scales[:, column_groups], zero_points[:, column_groups]
    return quantize_columns(weights, inverse_factor, scales_of_columns, zeros_of_columns, lo, hi)


def quantize_columns(
    weights: NDArray[Float],
    U: NDArray[Float],
    scales: NDArray[Float],
    zeros: NDArray[Float],
    lo: int,
    hi: int,
) -> Codes:
    """The loop itself, in the precision of its inputs; all but U are ``(rows, cols)``."""
    weights = weights.copy()
    codes = np.zeros(weights.shape, dtype=np.int8)
    with np.errstate(all="ignore"):
        for j in range(weights.shape[1]):
            w, scale, zero = weights[:, j], scales[:, j], zeros[:, j]
            level = np.where(scale == 0, zero, w / scale + zero)
            code = np.clip(np.rint(np.where(np.isnan(level), lo, level)), lo, hi)
            codes[:, j] = code.astype(np.int8)
            residual = _minus_product(w, scale, code.astype(w.dtype) - zero)
            error = residual / U[j, j]
            later = weights[:, j + 1 :]
            later[:] = _minus_product(later, error[:, None], U[j, j + 1 :])
    return codes


def _minus_product(c: NDArray[Float], a: NDArray[Float], b: NDArray[Float]) -> NDArray[Float]:
    """``c - a * b``: rounded once in float32, as a fused multiply-add does; twice in float64.

    Float64 holds the product exactly. Their sum is rounded to odd (if it is not exact, towards the
    neighbor whose last bit is set), so that rounding it again to float32 errs no further.

    References
    ----------
    Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums", theorem 1.
    """
    if c.dtype == np.float64:
        return c - a * b
    wide, product = c.astype(np.float64), -(a.astype(np.float64) * b.astype(np.float64))
    total = wide + product
    part = total - wide
    rest = (wide - (total - part)) + (product - part)
    is_even = np.ascontiguousarray(total).view(np.int64) % 2 == 0
    inexact = np.isfinite(total) & (rest != 0) & is_even
    odd = np.nextafter(total, np.where(rest > 0, np.inf, -np.inf))
    result: NDArray[Float] = np.where(inexact, odd, total).astype(c.dtype)
    return result


def _check_matrix(name: str, matrix: AnyArray, shape: tuple[int, int]) -> None:
    if matrix.shape != shape:
        raise InvalidArgumentError(f"gptq: {name} has shape {matrix.shape}, expected {shape}")
    bad = np.argwhere(~np.isfinite(matrix))
    if bad.size:
        row, col = bad[0]
        raise InvalidArgumentError(
            f"gptq: {name} has {matrix[row, col]} at row {row}, column {col}"
        )


def _check_diagonal(inverse_factor: NDArray[np.float32]) -> None:
    bad = np.flatnonzero(~(np.diagonal(inverse_factor) > 0))
    if bad.size:
        j = int(bad[0])
        raise InvalidArgumentError(
            f"gptq: inverse_factor has {inverse_factor[j, j]} on its diagonal at column {j}, "
            "expected a positive number"
        )


def _check_codes(lo: int, hi: int, block_cols: int) -> None:
    if not -128 <= lo <= hi <= 127:
        raise InvalidArgumentError(f"gptq: got lo={lo}, hi={hi}, expected -128 <= lo <= hi <= 127")
    if block_cols < 1:
        raise InvalidArgumentError(f"gptq: got block_cols={block_cols}, expected 1 or more")


def _checked_groups(
    column_groups: NDArray[np.int32] | None, cols: int, groups: int
) -> NDArray[np.int32]:
    if column_groups is None:
        if groups != 1:
            raise InvalidArgumentError(f"gptq: {groups} scales per row need column_groups")
        return np.zeros(cols, dtype=np.int32)
    column_groups = as_array(column_groups, "column_groups", np.int32, 1)
    if column_groups.size != cols:
        raise InvalidArgumentError(
            f"gptq: column_groups has {column_groups.size} entries, expected {cols}"
        )
    for j, group in enumerate(column_groups):
        check_range(f"column_groups[{j}]", int(group), 0, groups - 1)
    return column_groups
