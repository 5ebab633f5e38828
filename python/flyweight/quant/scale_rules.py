"""The scale rules by name, as recipes choose them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flyweight.errors import InvalidArgumentError
from flyweight.quant.clip import (
    PERCENTILES_5,
    PERCENTILES_15,
    min_max_scales,
    percentile_scales,
    row_max_scales,
    sdclip_scales,
)
from flyweight.quant.clip_hessian import hessian_scales, sigma_clip_scales
from flyweight.quant.clip_levels import absmean_scales, threshold_scales
from flyweight.quant.grid import Grid
from flyweight.typing import AnyArray

__all__ = ["SCALE_RULES", "ScaleRule", "find_scales"]

Weights = NDArray[np.float32]
Hessian = NDArray[np.float32] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleRule:
    """How a rule is called, and what it is for."""

    find: Callable[[Weights, Grid, Hessian, float], tuple[AnyArray, AnyArray | None]]
    """From weights, grid, Hessian and ``k`` to scales and zero-points."""
    takes_k: bool = False
    """Whether it has the parameter ``k``."""
    is_symmetric: bool = True
    """Whether its grids are symmetric; else they are affine."""
    max_code: int = 127
    """Largest ``hi`` of its grids."""


SCALE_RULES: dict[str, ScaleRule] = {
    "row-max": ScaleRule(find=lambda w, grid, h, k: (row_max_scales(w, grid), None)),
    "sdclip": ScaleRule(
        find=lambda w, grid, h, k: (sdclip_scales(w, grid, k=k), None), takes_k=True
    ),
    "percentile-5": ScaleRule(
        find=lambda w, grid, h, k: (percentile_scales(w, grid, quantiles=PERCENTILES_5), None)
    ),
    "percentile-15": ScaleRule(
        find=lambda w, grid, h, k: (
            percentile_scales(w, grid, quantiles=PERCENTILES_15, is_shared=True),
            None,
        )
    ),
    "sigma-clip": ScaleRule(
        find=lambda w, grid, h, k: (sigma_clip_scales(w, grid, hessian=h), None)
    ),
    "hessian": ScaleRule(find=lambda w, grid, h, k: (hessian_scales(w, grid, hessian=h), None)),
    "hessian-diagonal": ScaleRule(
        find=lambda w, grid, h, k: (hessian_scales(w, grid, hessian=h, is_diagonal=True), None)
    ),
    "threshold": ScaleRule(
        find=lambda w, grid, h, k: (threshold_scales(w, grid), None), max_code=2
    ),
    "absmean": ScaleRule(find=lambda w, grid, h, k: (absmean_scales(w, grid), None), max_code=2),
    "min-max": ScaleRule(find=lambda w, grid, h, k: min_max_scales(w, grid), is_symmetric=False),
}
"""Name to rule; the functions say where each comes from."""


def find_scales(
    weights: NDArray[np.float32],
    grid: Grid,
    *,
    rule: str,
    k: float | None = None,
    hessian: NDArray[np.float32] | None = None,
) -> tuple[AnyArray, AnyArray | None]:
    """Scales, and zero-points on affine grids, by the rule of that name.

    Parameters
    ----------
    weights : (rows, cols) float32, finite
    grid : one that the rule is made for
    rule : a key of ``SCALE_RULES``
    k : its parameter, for rules that take one
    hessian : (cols, cols) float32, mean of ``x x^T``; rules that weigh nothing ignore it

    Returns
    -------
    scales : (rows, groups) of the grid's scale dtype
    zero_points : the same, or None on a symmetric grid

    Raises
    ------
    InvalidArgumentError
        There is no such rule, ``k`` is missing or not wanted, or the rule refuses its input.
    """
    if rule not in SCALE_RULES:
        raise InvalidArgumentError(f"no scale rule {rule!r}; there are {', '.join(SCALE_RULES)}")
    if SCALE_RULES[rule].takes_k != (k is not None):
        wanted = "needs a k" if k is None else "has no parameter k"
        raise InvalidArgumentError(f"scale rule {rule!r} {wanted}, got k={k}")
    return SCALE_RULES[rule].find(weights, grid, hessian, 0.0 if k is None else k)
