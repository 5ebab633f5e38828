"""Scale rules of grids with three and five codes, where clipping and rounding are one question.

Codes are still chosen by rounding to nearest or GPTQ: the thresholds here only lead to a scale.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flyweight.errors import InvalidArgumentError
from flyweight.quant.grid import Grid
from flyweight.quant.groups import check_weights, largest, per_group, stored
from flyweight.typing import AnyArray

__all__ = ["THRESHOLD", "absmean_scales", "threshold_scales"]

THRESHOLD = 0.7
"""Of the mean magnitude: where code 1 begins; code 2 begins at twice that."""


def threshold_scales(weights: NDArray[np.float32], grid: Grid) -> AnyArray:
    """Least-squares steps for codes that are cut at multiples of 0.7 mean magnitudes.

    With ``t = 0.7 mean|w|`` and ``q`` the sign of ``w`` times how many of ``t, 2t`` (ternary: of
    ``t``) its magnitude is above, the step is ``<w, q> / <q, q>``.

    Parameters
    ----------
    weights : (rows, cols) float32
    grid : ternary or pentanary

    Returns
    -------
    (rows, groups) of the grid's scale dtype; zero for a group of zeros

    Raises
    ------
    InvalidArgumentError
        A weight is not finite, the grid is another, or a step does not fit the scale dtype.

    Notes
    -----
    Codes then go to the nearest, not by the thresholds. For ternary grids that is nearly the same;
    of five codes for a Gaussian, 0.32 are 0 where the thresholds have 0.42, with less error and
    more bits.

    References
    ----------
    Ternary: Li and Liu, Ternary Weight Networks, arXiv:1605.04711. Pentanary:
    openai/parameter-golf pull request 1123.
    """
    _check_levels(weights, grid)

    def step(block: NDArray[np.float32]) -> AnyArray:
        magnitudes = np.abs(block).astype(np.float64)
        unit = THRESHOLD * magnitudes.mean(axis=1, keepdims=True)
        codes = sum((magnitudes > n * unit).astype(np.float64) for n in range(1, grid.hi + 1))
        power = (codes**2).sum(axis=1)
        # Something is above 0.7 means unless all is zero.
        steps: AnyArray = (magnitudes * codes).sum(axis=1) / np.where(power == 0, 1, power)
        return steps

    return stored(per_group(weights, grid, step), largest(weights, grid), grid)


def absmean_scales(weights: NDArray[np.float32], grid: Grid) -> AnyArray:
    """Steps of the mean magnitude.

    Parameters
    ----------
    weights : (rows, cols) float32
    grid : ternary or pentanary

    Returns
    -------
    (rows, groups) of the grid's scale dtype; zero for a group of zeros

    Raises
    ------
    InvalidArgumentError
        As for :func:`threshold_scales`.

    References
    ----------
    BitNet b1.58, arXiv:2402.17764, equations 1 to 3 (there for a whole matrix, here for a group).
    """
    _check_levels(weights, grid)
    means = per_group(weights, grid, lambda block: np.abs(block).mean(axis=1, dtype=np.float64))
    return stored(means, largest(weights, grid), grid)


def _check_levels(weights: NDArray[np.float32], grid: Grid) -> None:
    if (grid.lo, grid.hi) not in ((-1, 1), (-2, 2)):
        raise InvalidArgumentError(
            f"this scale rule needs the codes -1..1 or -2..2, got {grid.lo}..{grid.hi}"
        )
    check_weights(weights, grid)
