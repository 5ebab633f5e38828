"""GPTQ for one matrix: codes whose rounding errors are fed back along the Hessian.

The column loop is a kernel; here are the parts around it: dead columns, column order, damping, the
Cholesky factor, and the way out when a Hessian cannot be factored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flyweight.errors import InvalidArgumentError
from flyweight.kernels.gptq import gptq_quantize
from flyweight.quant.grid import Grid
from flyweight.typing import AnyArray, Codes

__all__ = [
    "GptqResult",
    "check_hessian",
    "hessian_error",
    "inverse_factor",
    "quantize_matrix",
    "round_to_nearest",
]

MAX_DAMPING_STEPS = 12
SMALL_TRIANGLE = 48  # columns, below which a general inverse is as fast as its halves


@dataclass(frozen=True, slots=True, kw_only=True)
class GptqResult:
    """Codes of one matrix and how they were found."""

    codes: Codes
    """(rows, cols) int8 in the original column order."""
    damp_ratio: float | None
    """Damping that the factorization took; None when no factor was found and RTN was used."""
    dead_columns: int
    """Columns whose inputs were always zero; their codes stand for zero."""


def quantize_matrix(
    weights: NDArray[np.float32],
    scales: AnyArray,
    grid: Grid,
    *,
    hessian: NDArray[np.float32] | None = None,
    zero_points: AnyArray | None = None,
    damp_ratio: float = 0.01,
    act_order: bool = True,
    block_cols: int = 128,
    threads: int | None = None,
) -> GptqResult:
    """Codes of a matrix by GPTQ, or by rounding to nearest where there is no Hessian.

    Parameters
    ----------
    weights : (rows, cols) float32, finite
    scales : (rows, groups) as they will be stored
    grid : codes allowed and columns that share a scale
    hessian : (cols, cols) float32, mean of ``x x^T`` over calibration tokens; None for RTN
    zero_points : (rows, groups) as they will be stored; affine grids only
    damp_ratio : share of the mean diagonal added before the factorization
    act_order : take columns by falling Hessian diagonal
    block_cols : columns whose errors are spread together; speed only
    threads : threads that share the rows; None for one per processor; speed only

    Returns
    -------
    GptqResult

    Raises
    ------
    InvalidArgumentError
        Shapes do not match, a weight, scale or Hessian entry is not finite, or the Hessian is not
        symmetric or has a negative diagonal.

    Notes
    -----
    Never fails on a second moment: damping grows tenfold until the matrix can be factored, and
    after ``MAX_DAMPING_STEPS`` attempts the matrix is rounded to nearest instead.

    References
    ----------
    Frantar et al., GPTQ, arXiv:2210.17323, algorithm 1.
    """
    rows, cols = weights.shape
    _check_finite(weights, "weights")
    if hessian is not None:
        check_hessian(hessian, cols)
    if hessian is None or cols == 0 or rows == 0:
        return GptqResult(
            codes=round_to_nearest(weights, scales, grid, zero_points),
            damp_ratio=None,
            dead_columns=0,
        )
    diagonal = np.diagonal(hessian)
    dead = diagonal == 0
    if dead.all():  # calibration saw nothing: no error to feed back, and no reason for zeros
        rounded = quantize_matrix(weights, scales, grid, zero_points=zero_points)
        return replace(rounded, dead_columns=cols)
    order = np.argsort(-diagonal, kind="stable") if act_order else np.arange(cols)
    live = np.where(dead, np.float32(0), weights)
    factor, used = inverse_factor(hessian[np.ix_(order, order)], damp_ratio=damp_ratio)
    codes = np.empty((rows, cols), dtype=np.int8)
    codes[:, order] = _run(
        np.ascontiguousarray(live[:, order]),
        factor,
        scales,
        grid,
        zero_points,
        column_groups=grid.column_groups(cols)[order],
        block_cols=block_cols,
        threads=threads,
    )
    return GptqResult(codes=codes, damp_ratio=used, dead_columns=int(dead.sum()))


def round_to_nearest(
    weights: NDArray[np.float32], scales: AnyArray, grid: Grid, zero_points: AnyArray | None = None
) -> Codes:
    """The nearest code of each weight, ties to even: what GPTQ does without a Hessian.

    Parameters
    ----------
    weights : (rows, cols) float32, finite
    scales, zero_points : (rows, groups), as for :meth:`Grid.dequantize`; a scale of 0 gives code 0

    Returns
    -------
    (rows, cols) int8
    """
    groups = grid.column_groups(weights.shape[1])
    steps = scales.astype(np.float32)[:, groups]
    zeros = np.float32(0) if zero_points is None else zero_points.astype(np.float32)[:, groups]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        levels = np.where(steps == 0, zeros, weights / steps + zeros)
    codes: Codes = np.rint(levels).clip(grid.lo, grid.hi).astype(np.int8)
    return codes


def inverse_factor(
    hessian: NDArray[np.float32], *, damp_ratio: float
) -> tuple[NDArray[np.float32], float | None]:
    """Upper Cholesky factor ``U`` of the damped inverse, ``H^-1 = U^T U``, in float64.

    Parameters
    ----------
    hessian : (cols, cols) float32, symmetric; columns in the order they will be quantized
    damp_ratio : share of the mean positive diagonal to start with

    Returns
    -------
    factor : (cols, cols) float32, upper triangular; the identity (plain rounding) if all failed
    damp_ratio : what it took, or None
    """
    cols = hessian.shape[0]
    diagonal = np.diagonal(hessian).astype(np.float64)
    alive = diagonal > 0
    mean = float(diagonal[alive].mean()) if alive.any() else 0.0
    if mean == 0.0:
        return np.eye(cols, dtype=np.float32), None
    damping = damp_ratio
    for _ in range(MAX_DAMPING_STEPS):
        damped = hessian.astype(np.float64)
        damped[np.diag_indices(cols)] += damping * mean
        damped[~alive, :] = 0
        damped[:, ~alive] = 0
        damped[~alive, ~alive] = mean
        factor = _factor(damped)
        if factor is not None:
            return factor, damping
        damping = max(damping * 10, 1e-4)
    return np.eye(cols, dtype=np.float32), None


def hessian_error(
    weights: NDArray[np.float32],
    dequantized: NDArray[np.float32],
    hessian: NDArray[np.float32] | None,
) -> float:
    """Relative output error ``tr(D H D^T) / tr(W H W^T)`` in float64; unit Hessian if None."""
    original = weights.astype(np.float64)
    delta = original - dequantized.astype(np.float64)
    if hessian is None:
        error, power = float((delta**2).sum()), float((original**2).sum())
    else:
        metric = hessian.astype(np.float64)
        error = float(((delta @ metric) * delta).sum())
        power = float(((original @ metric) * original).sum())
    return error / power if power > 0 else 0.0


def _factor(damped: NDArray[np.float64]) -> NDArray[np.float32] | None:
    try:
        # With P the order reversal, chol(P H P) = L gives H = (P L P)(P L P)^T, P L P upper;
        # its inverse transposed is lower, so U = (P L P)^-1 is upper and H^-1 = U^T U.
        lower = np.linalg.cholesky(damped[::-1, ::-1])
        inverse = _inverse_of_lower(lower)[::-1, ::-1]
    except np.linalg.LinAlgError:
        return None
    with np.errstate(over="ignore"):
        factor = np.ascontiguousarray(inverse, dtype=np.float32)
    usable = np.isfinite(factor).all() and (np.diagonal(factor) > 0).all()
    return factor if usable else None


def _inverse_of_lower(lower: NDArray[np.floating]) -> NDArray[np.floating]:
    """Inverse of a lower triangular matrix, almost all of it in two products of blocks:
    ``inv([[A, 0], [B, C]]) = [[inv(A), 0], [-inv(C) B inv(A), inv(C)]]``."""
    size = len(lower)
    if size <= SMALL_TRIANGLE:
        return np.tril(np.linalg.inv(lower))
    half = size // 2
    inverse = np.zeros_like(lower)
    inverse[:half, :half] = _inverse_of_lower(lower[:half, :half])
    inverse[half:, half:] = _inverse_of_lower(lower[half:, half:])
    inverse[half:, :half] = -inverse[half:, half:] @ (lower[half:, :half] @ inverse[:half, :half])
    return inverse


def _run(
    weights: NDArray[np.float32],
    factor: NDArray[np.float32],
    scales: AnyArray,
    grid: Grid,
    zero_points: AnyArray | None,
    *,
    column_groups: NDArray[np.int32],
    block_cols: int,
    threads: int | None,
) -> Codes:
    return gptq_quantize(
        np.ascontiguousarray(weights),
        factor,
        np.ascontiguousarray(scales, dtype=np.float32),
        column_groups=np.ascontiguousarray(column_groups),
        zero_points=None if zero_points is None else zero_points.astype(np.float32),
        lo=grid.lo,
        hi=grid.hi,
        block_cols=block_cols,
        threads=threads,
    )


def check_hessian(hessian: NDArray[np.float32], cols: int) -> None:
    """Refuse what cannot be the mean of ``x x^T`` over inputs ``x`` of a matrix.

    Raises
    ------
    InvalidArgumentError
        Not (cols, cols), not finite, not symmetric, or with a negative diagonal.
    """
    if hessian.shape != (cols, cols):
        raise InvalidArgumentError(
            f"a matrix with {cols} columns needs a ({cols}, {cols}) Hessian, got {hessian.shape}"
        )
    if not cols:
        return
    _check_finite(hessian, "hessian")
    diagonal = np.diagonal(hessian)
    if (diagonal < 0).any():
        column = int(np.argmax(diagonal < 0))
        raise InvalidArgumentError(
            f"hessian has {diagonal[column]} on its diagonal at column {column}, expected 0 or more"
        )
    skew = float(np.abs(hessian - hessian.T).max())
    if skew > 1e-3 * float(np.abs(hessian).max()):
        raise InvalidArgumentError(f"hessian is not symmetric: entries differ by up to {skew:.3g}")


def _check_finite(array: NDArray[np.float32], name: str) -> None:
    finite = np.isfinite(array)
    if not finite.all():
        row, col = (int(i) for i in np.argwhere(~finite)[0])
        raise InvalidArgumentError(f"{name} has {array[row, col]} at row {row}, column {col}")
