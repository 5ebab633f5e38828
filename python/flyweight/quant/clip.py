"""Scale rules that look at the weights alone: plain functions from weights to steps.

All return scales already rounded to the dtype that is stored, so that error feedback and load see
the same numbers. A group of zeros has scale 0. Weights must be finite. Rules that weigh errors by a
Hessian are in ``clip_hessian.py``, those of three and five codes in ``clip_levels.py``; recipes
name them by ``scale_rules.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flyweight.errors import InvalidArgumentError
from flyweight.quant.grid import Grid
from flyweight.quant.groups import (
    check_weights,
    largest,
    per_group,
    rounded,
    rounding_error,
    squares,
    stored,
)
from flyweight.typing import AnyArray

__all__ = [
    "PERCENTILES_5",
    "PERCENTILES_15",
    "min_max_scales",
    "percentile_scales",
    "row_max_scales",
    "sdclip_scales",
]

PERCENTILES_5 = (1.0, 0.99999, 0.9999, 0.9995, 0.999)
"""Candidates of openai/parameter-golf pull requests 578 and 585, as quantiles."""
PERCENTILES_15 = (
    *(1.0, 0.999999, 0.999995, 0.99999, 0.99997, 0.99995, 0.99993, 0.9999),
    *(0.9997, 0.9995, 0.9993, 0.999, 0.998, 0.995, 0.99),
)
"""Candidates of openai/parameter-golf pull request 1683."""


def row_max_scales(weights: NDArray[np.float32], grid: Grid) -> AnyArray:
    """Steps that map the largest magnitude of each group to the largest code.

    Parameters
    ----------
    weights : (rows, cols) float32
    grid : a symmetric grid

    Returns
    -------
    (rows, groups) of the grid's scale dtype; zero for a group of zeros

    Raises
    ------
    InvalidArgumentError
        A weight is not finite, the grid is not symmetric, or a step does not fit the scale dtype.
    """
    check_weights(weights, grid)
    tops = largest(weights, grid)
    return stored(tops / grid.hi, tops, grid)


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

    Raises
    ------
    InvalidArgumentError
        As for :func:`row_max_scales`, or ``k`` is not positive.

    References
    ----------
    SDClip: openai/parameter-golf pull request 1394.
    """
    if not k > 0:
        raise InvalidArgumentError(f"k must be more than 0, got {k}")
    check_weights(weights, grid)
    steps = np.sqrt(per_group(weights, grid, _mean_square)) * (k / grid.hi)
    return stored(steps, largest(weights, grid), grid)


def percentile_scales(
    weights: NDArray[np.float32],
    grid: Grid,
    *,
    quantiles: Sequence[float],
    is_shared: bool = False,
) -> AnyArray:
    """Steps that map a quantile of the magnitudes to the largest code, the best of a few.

    The best is the one with the least squared error of rounding to nearest.

    Parameters
    ----------
    weights : (rows, cols) float32
    grid : a symmetric grid
    quantiles : candidates, 0 to 1, such as ``PERCENTILES_5``; between two magnitudes linearly
    is_shared : whether one candidate is chosen for the whole matrix; else one for every group

    Returns
    -------
    (rows, groups) of the grid's scale dtype; zero for a group of zeros

    Raises
    ------
    InvalidArgumentError
        As for :func:`row_max_scales`, or a quantile is not within 0 and 1.

    Notes
    -----
    Among equal errors the earlier candidate wins. The pull requests bound scales from below by
    ``1 / hi``, which made the step of most of their rows; that is not done here.

    References
    ----------
    openai/parameter-golf pull requests 578 and 585 (a row), 1683 (``is_shared``).
    """
    if not quantiles or not all(0 <= each <= 1 for each in quantiles):
        raise InvalidArgumentError(f"quantiles must be within 0 and 1, got {tuple(quantiles)}")
    row_max_scales(weights, grid)  # raises where the largest candidate does not fit
    candidates = np.array(quantiles)

    def judged(block: NDArray[np.float32]) -> AnyArray:
        magnitudes = np.abs(block)
        reach = np.quantile(magnitudes, candidates, axis=1).astype(np.float32)
        scales = rounded(reach / grid.hi, magnitudes.max(axis=1), grid)
        errors = [squares(rounding_error(block, each[:, None], grid)) for each in scales]
        return np.stack([scales.astype(np.float64), errors], axis=-1).swapaxes(0, 1)

    scales, errors = np.moveaxis(
        per_group(weights, grid, judged, shape=(len(candidates), 2)), -1, 0
    )
    if is_shared:
        errors = np.broadcast_to(errors.sum(axis=(0, 1)), errors.shape)
    best = errors.argmin(axis=2)[..., None]
    return np.take_along_axis(scales, best, axis=2)[..., 0].astype(grid.scale_dtype)


def min_max_scales(weights: NDArray[np.float32], grid: Grid) -> tuple[AnyArray, AnyArray]:
    """Steps and zero-points that map the range of each group to all codes.

    Parameters
    ----------
    weights : (rows, cols) float32
    grid : an affine grid

    Returns
    -------
    scales : (rows, groups) of the grid's scale dtype; zero for a group of zeros
    zero_points : the same shape and dtype, whole numbers ``lo .. hi``; the nearest to zero where
        the scale is zero

    Raises
    ------
    InvalidArgumentError
        A weight is not finite, the grid is not affine, or a step does not fit the scale dtype.

    Notes
    -----
    Zero is always in the range, and a code stands for it exactly: so do the weights of columns
    that calibration never saw come back as zeros. A group of one value keeps it, to the rounding
    of its scale.

    References
    ----------
    Jacob et al., arXiv:1712.05877 (the zero-point as a code); the same in IST-DASLab/gptq.
    """
    check_weights(weights, grid, is_symmetric=False)
    low = per_group(weights, grid, lambda block: np.minimum(block.min(axis=1), 0))
    high = per_group(weights, grid, lambda block: np.maximum(block.max(axis=1), 0))
    scales = stored((high - low) / (grid.hi - grid.lo), largest(weights, grid), grid)
    with np.errstate(divide="ignore", invalid="ignore"):
        points = np.where(scales == 0, 0, np.rint(grid.lo - low / scales.astype(np.float64)))
    return scales, points.clip(grid.lo, grid.hi).astype(scales.dtype)


def _mean_square(block: NDArray[np.float32]) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = (block.astype(np.float64) ** 2).mean(axis=1)
    return mean
