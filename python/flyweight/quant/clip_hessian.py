"""Scale rules that weigh the errors of rounding by a Hessian, which says what they do to outputs.

They judge candidates by rounding to nearest, without error feedback: a guide to where clipping
hurts, not the error that GPTQ will make. Without a Hessian all inputs count alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from flyweight.errors import InvalidArgumentError
from flyweight.quant.clip import row_max_scales
from flyweight.quant.grid import Grid
from flyweight.quant.groups import largest, rounded, rounding_error, row_blocks, squares
from flyweight.typing import AnyArray

__all__ = ["SHRINKS", "SIGMAS", "hessian_scales", "sigma_clip_scales"]

SIGMAS = (float("inf"), 4.0, 3.5, 3.0, 2.5, 2.0)
"""Candidates of openai/parameter-golf pull request 1683, in standard deviations of the matrix."""
SHRINKS = tuple(0.93**n for n in range(20))
"""Candidates of :func:`hessian_scales`, as shares of the row maximum: 1 down to 0.25."""


def sigma_clip_scales(
    weights: NDArray[np.float32],
    grid: Grid,
    *,
    hessian: NDArray[np.float32] | None = None,
    sigmas: Sequence[float] = SIGMAS,
) -> AnyArray:
    """Row-max steps of weights clipped at the best of a few multiples of their deviation.

    One multiple is chosen for the matrix, by ``tr(D H D^T)`` with the error ``D`` of rounding the
    weights as they are (not clipped) to nearest.

    Parameters
    ----------
    weights : (rows, cols) float32
    grid : a symmetric grid
    hessian : (cols, cols) float32, mean of ``x x^T``; None for the unit Hessian
    sigmas : candidates, in standard deviations about zero of the whole matrix

    Returns
    -------
    (rows, groups) of the grid's scale dtype; zero for a group of zeros

    Raises
    ------
    InvalidArgumentError
        A weight or an entry of the Hessian is not finite, shapes do not match, the grid is not
        symmetric, or a step does not fit the scale dtype.

    Notes
    -----
    GPTQ gets the weights unclipped afterwards, so that what the grid clips is fed back. In the
    pull request it was lost.

    References
    ----------
    openai/parameter-golf pull request 1683.
    """
    check_hessian(weights, hessian)
    row_max_scales(weights, grid)  # raises for all that the candidates would
    tops = largest(weights, grid)
    deviation = np.sqrt(np.mean(weights.astype(np.float64) ** 2)) if weights.any() else 1.0
    candidates = [
        rounded(np.minimum(tops, np.float32(sigma * deviation)) / grid.hi, tops, grid)
        for sigma in sigmas
    ]
    errors = [_tensor_error(weights, scales, grid, hessian) for scales in candidates]
    return candidates[int(np.argmin(errors))]


def hessian_scales(
    weights: NDArray[np.float32],
    grid: Grid,
    *,
    hessian: NDArray[np.float32] | None = None,
    is_diagonal: bool = False,
    shrinks: Sequence[float] = SHRINKS,
) -> AnyArray:
    """The best share of the row maximum for each group, by the Hessian-weighted error of rounding.

    Parameters
    ----------
    weights : (rows, cols) float32
    grid : a symmetric grid
    hessian : (cols, cols) float32, mean of ``x x^T``; None for the unit Hessian
    is_diagonal : judge by the diagonal alone, ``sum_j H_jj d_j^2``; else by ``d H d^T``
    shrinks : candidates, shares of the row maximum, 0 to 1

    Returns
    -------
    (rows, groups) of the grid's scale dtype; zero for a group of zeros

    Raises
    ------
    InvalidArgumentError
        As for :func:`sigma_clip_scales`, or a share is not within 0 and 1.

    Notes
    -----
    A group is judged by its own block of the Hessian: errors of other groups are left out. Costs
    ``len(shrinks)`` products of the weights and the Hessian, unless ``is_diagonal``.

    References
    ----------
    The error is that of GPTQ, arXiv:2210.17323, equation 1; its diagonal is what llama.cpp weighs
    its searches with (there: importance matrix). openai/parameter-golf pull requests 578 and 1683
    searched unweighted, though they had the Hessian.
    """
    if not shrinks or not all(0 < each <= 1 for each in shrinks):
        raise InvalidArgumentError(f"shrinks must be within 0 and 1, got {tuple(shrinks)}")
    check_hessian(weights, hessian)
    chosen = row_max_scales(weights, grid)
    rows, cols = weights.shape
    size = grid.group_size or cols
    for group in range(grid.groups(cols)):
        columns = slice(group * size, min((group + 1) * size, cols))
        measure = _measure(hessian, columns, is_diagonal=is_diagonal)
        for block in row_blocks(rows, columns.stop - columns.start):
            part = np.ascontiguousarray(weights[block, columns])
            chosen[block, group] = _best_shrink(part, grid, measure, shrinks)
    return chosen


Measure = Callable[[NDArray[np.float32]], NDArray[np.float64]]
"""From errors (n, size) to one number a row."""


def _measure(hessian: NDArray[np.float32] | None, columns: slice, *, is_diagonal: bool) -> Measure:
    """``d H d^T`` of each row, sums in float64; products with the Hessian in float32."""
    if hessian is None:
        return squares
    block = np.ascontiguousarray(hessian[columns, columns])
    if is_diagonal:
        diagonal = np.diagonal(block).astype(np.float64)
        return lambda error: np.square(error, dtype=np.float64) @ diagonal
    return lambda error: np.einsum("ij,ij->i", error @ block, error, dtype=np.float64)


def _best_shrink(
    part: NDArray[np.float32], grid: Grid, measure: Measure, shrinks: Sequence[float]
) -> AnyArray:
    """Scale of each row of a block of one group, (n,)."""
    tops = np.abs(part).max(axis=1)
    candidates = [rounded(tops * np.float32(share) / grid.hi, tops, grid) for share in shrinks]
    errors = [measure(rounding_error(part, each[:, None], grid)) for each in candidates]
    best = np.argmin(errors, axis=0)
    chosen: AnyArray = np.take_along_axis(np.array(candidates), best[None], axis=0)[0]
    return chosen


def _tensor_error(
    weights: NDArray[np.float32],
    scales: AnyArray,
    grid: Grid,
    hessian: NDArray[np.float32] | None,
) -> float:
    """``tr(D H D^T)`` of rounding to nearest."""
    rows, cols = weights.shape
    groups = grid.column_groups(cols)
    measure = _measure(hessian, slice(0, cols), is_diagonal=False)
    total = 0.0
    for block in row_blocks(rows, cols):
        error = rounding_error(weights[block], scales[block][:, groups], grid)
        total += float(measure(error).sum())
    return total


def check_hessian(weights: NDArray[np.float32], hessian: NDArray[np.float32] | None) -> None:
    """Refuse a Hessian of another shape, or that is not finite."""
    if hessian is None:
        return
    cols = weights.shape[1]
    if hessian.shape != (cols, cols):
        raise InvalidArgumentError(
            f"a matrix with {cols} columns needs a ({cols}, {cols}) Hessian, got {hessian.shape}"
        )
    if not np.isfinite(hessian).all():
        row, col = (int(i) for i in np.argwhere(~np.isfinite(hessian))[0])
        raise InvalidArgumentError(f"hessian has {hessian[row, col]} at row {row}, column {col}")
