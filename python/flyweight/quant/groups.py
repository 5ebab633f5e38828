"""What scale rules share: groups of a row one by one, and steps as they will be stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from flyweight.errors import InvalidArgumentError
from flyweight.quant.grid import Grid
from flyweight.typing import AnyArray

__all__ = [
    "check_weights",
    "largest",
    "per_group",
    "rounded",
    "rounding_error",
    "row_blocks",
    "squares",
    "stored",
]

BLOCK_ELEMENTS = 1 << 20
"""Weights looked at together: what bounds the memory of a rule, at 4 or 8 bytes a copy."""


def check_weights(weights: NDArray[np.float32], grid: Grid, *, is_symmetric: bool = True) -> None:
    """Refuse weights that are not finite, and grids that a rule is not made for.

    Raises
    ------
    InvalidArgumentError
        The message names the first weight that is not finite.
    """
    if grid.is_symmetric != is_symmetric or (is_symmetric and grid.hi <= 0) or grid.lo == grid.hi:
        wanted = "a symmetric grid with hi > 0" if is_symmetric else "an affine grid of two codes"
        raise InvalidArgumentError(f"this scale rule needs {wanted}, got {grid}")
    if not np.isfinite(weights).all():
        row, col = (int(i) for i in np.argwhere(~np.isfinite(weights))[0])
        raise InvalidArgumentError(f"weights has {weights[row, col]} at row {row}, column {col}")


def row_blocks(rows: int, cols: int) -> Iterator[slice]:
    """Slices of rows that hold about ``BLOCK_ELEMENTS`` together, at least one row each."""
    step = max(1, BLOCK_ELEMENTS // max(cols, 1))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def per_group(
    weights: NDArray[np.float32],
    grid: Grid,
    rule: Callable[[NDArray[np.float32]], AnyArray],
    *,
    shape: tuple[int, ...] = (),
) -> AnyArray:
    """A number, or several, per group of every row, block of rows by block of rows.

    Parameters
    ----------
    weights : (rows, cols) float32
    grid : says how many columns are a group; the last one of a row may be shorter
    rule : from (n, size) float32, one group a row, to (n, *shape); each row on its own
    shape : of what the rule gives for a group

    Returns
    -------
    (rows, groups, *shape) float64
    """
    rows, cols = weights.shape
    groups = grid.groups(cols)
    found = np.zeros((rows, groups, *shape))
    if groups == 0:
        return found
    size = grid.group_size or cols
    whole = cols // size
    for block in row_blocks(rows, cols):
        part = np.ascontiguousarray(weights[block])
        if whole:
            full = part[:, : whole * size].reshape(-1, size)
            found[block, :whole] = rule(full).reshape(-1, whole, *shape)
        if whole < groups:
            found[block, whole] = rule(np.ascontiguousarray(part[:, whole * size :]))
    return found


def largest(weights: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
    """The largest magnitude of each group, (rows, groups)."""
    tops = per_group(weights, grid, lambda block: np.abs(block).max(axis=1))
    return tops.astype(np.float32)


def squares(error: NDArray[np.float32]) -> NDArray[np.float64]:
    """Squares summed over the columns, in float64."""
    total: NDArray[np.float64] = np.einsum("ij,ij->i", error, error, dtype=np.float64)
    return total


def rounded(steps: AnyArray, tops: AnyArray, grid: Grid) -> AnyArray:
    """Steps in the stored dtype; never zero where ``tops``, the largest magnitude, is not."""
    dtype = np.dtype(grid.scale_dtype)
    with np.errstate(over="ignore"):
        scales: AnyArray = np.asarray(steps).astype(dtype)
    scales[(scales == 0) & (tops > 0)] = np.finfo(dtype).smallest_subnormal
    return scales


def stored(steps: AnyArray, tops: AnyArray, grid: Grid) -> AnyArray:
    """The same, and an error for a step that the dtype cannot hold.

    Raises
    ------
    InvalidArgumentError
        The message names the row.
    """
    dtype = np.dtype(grid.scale_dtype)
    if steps.size and steps.max() > np.finfo(dtype).max:
        row = int(np.unravel_index(int(steps.argmax()), steps.shape)[0])
        raise InvalidArgumentError(
            f"row {row} needs a scale of {steps.max():.4g}, more than {dtype} can hold: "
            "keep the tensor lossless, or scale the weights down"
        )
    return rounded(steps, tops, grid)


def rounding_error(
    weights: NDArray[np.float32], scales: AnyArray, grid: Grid
) -> NDArray[np.float32]:
    """What rounding to nearest leaves: ``weights`` minus their nearest on a symmetric grid.

    Parameters
    ----------
    weights : (n, size) float32
    scales : (n, 1) or (n, size) of the grid's scale dtype; a scale of 0 stands for zeros

    Returns
    -------
    (n, size) float32
    """
    steps = scales.astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        codes = np.rint(weights / steps).clip(grid.lo, grid.hi)
        left = weights - codes * steps
    error: NDArray[np.float32] = np.where(steps == 0, weights, left)
    return error
