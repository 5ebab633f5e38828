"""Scale rules: plain functions from weights to the step of each row.

All return scales already rounded to the dtype that is stored, so that error feedback and load see
the same numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flyweight.errors import InvalidArgumentError
from flyweight.quant.grid import Grid
from flyweight.typing import AnyArray

__all__ = ["row_max_scales", "sdclip_scales"]


def row_max_scales(weights: NDArray[np.float32], grid: Grid) -> AnyArray:
    """Steps that map the largest magnitude of each group to the largest code.

    Parameters
    ----------
    weights : (rows, cols) float32
    grid : a symmetric grid

    Returns
    -------
    (rows, groups) of the grid's scale dtype; zero for a group of zeros
    """
    grouped = _by_group(weights, grid)
    return _stored(np.nanmax(np.abs(grouped), axis=2) / grid.hi, grouped, grid)


def sdclip_scales(weights: NDArray[np.float32], grid: Grid, *, k: float) -> AnyArray:
    """Steps of ``k`` standard deviations over the largest code (SDClip).

    Deviations are taken about zero, as the grid is symmetric about it: the root mean square. The
    step, not the bit width, sets the coded size: a Gaussian row costs about
    ``log2(rms / step) + 2.05`` bits a weight.

    Parameters
    ----------
    weights : (rows, cols) float32
    grid : a symmetric grid
    k : where the grid clips, in standard deviations of the group, more than 0

    Returns
    -------
    (rows, groups) of the grid's scale dtype; zero for a group of zeros

    References
    ----------
    SDClip: openai/parameter-golf pull request 1394.
    """
    if not k > 0:
        raise InvalidArgumentError(f"k must be more than 0, got {k}")
    grouped = _by_group(weights, grid).astype(np.float64)
    steps = np.sqrt(np.nanmean(grouped**2, axis=2)) * (k / grid.hi)
    return _stored(steps, grouped, grid)


def _by_group(weights: NDArray[np.float32], grid: Grid) -> AnyArray:
    """(rows, groups, group_size), the last group of a row filled up with NaN."""
    if grid.hi <= 0 or not grid.is_symmetric:
        raise InvalidArgumentError(f"scale rules need a symmetric grid with hi > 0, got {grid}")
    rows, cols = weights.shape
    groups = grid.groups(cols)
    size = grid.group_size or cols
    if groups * size == cols:
        return weights.reshape(rows, groups, size)
    padded = np.full((rows, groups * size), np.nan, dtype=weights.dtype)
    padded[:, :cols] = weights
    return padded.reshape(rows, groups, size)


def _stored(steps: AnyArray, grouped: AnyArray, grid: Grid) -> AnyArray:
    """Round steps to the stored dtype; never to zero where a weight is not zero."""
    dtype = np.dtype(grid.scale_dtype)
    info = np.finfo(dtype)
    if steps.size and steps.max() > info.max:
        row = int(np.unravel_index(int(steps.argmax()), steps.shape)[0])
        raise InvalidArgumentError(
            f"row {row} needs a scale of {steps.max():.4g}, more than {dtype} can hold: "
            "keep the tensor lossless, or scale the weights down"
        )
    scales = steps.astype(dtype)
    needed = (scales == 0) & (np.nanmax(np.abs(grouped), axis=2, initial=0.0) > 0)
    scales[needed] = info.smallest_subnormal
    return scales
