"""Step sizes of equal slope: every row of every tensor buys the same damage with its last byte.

With error feedback along the Hessian, a row r coded in steps of size ``s`` does the damage
``1/2 g_r s^2 / 12 * sum_j D_j``: ``g_r`` is the sensitivity of its output, and ``D_j`` the part of
input j's power that the inputs coded after it do not explain. Halving the step costs one bit a
weight, wherever the row is. So the damage of a whole model is least for its bytes where
``g_r s^2 D`` is one constant, the square of the slope, for all rows of all tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flyweight.errors import InvalidArgumentError
from flyweight.kernels.gptq import gptq_quantize
from flyweight.quant.gptq import check_hessian, inverse_factor, round_to_nearest
from flyweight.quant.grid import Grid, QuantizedTensor
from flyweight.typing import AnyArray

__all__ = [
    "Curvature",
    "Steps",
    "curvature_of",
    "damage_by_row",
    "equal_slope_steps",
    "quantize_at",
    "slope_range",
    "steps_in_deviations",
]

ROW_STEPS_PER_OCTAVE = 8
"""Row scales are powers of two with so many steps between, and cost a fraction of a byte each."""
COLUMN_STEPS_PER_OCTAVE = 4
"""The same for column scales."""
MAX_COLUMN_OCTAVES = 3.0
"""Column scales are within a factor ``2**3`` of one."""
COLUMN_GAIN_BITS = 0.02
"""Column scales are used where they save at least so many bits a weight."""
MIN_SENSITIVITY = 0.01
"""Rows count at least so much of the mean row: calibration saw only so many tokens."""
MAX_CODE = 127


@dataclass(frozen=True, slots=True, kw_only=True)
class Curvature:
    """How a matrix's errors hurt: a second moment of its inputs and a weight for each output."""

    hessian: NDArray[np.float32] | None
    """(cols, cols), mean of ``x x^T``; None stands for the identity."""
    factor: NDArray[np.float32] | None
    """(cols, cols) upper triangular U, ``inverse(H) = U^T U``, columns in coding order."""
    order: NDArray[np.int64]
    """(cols,) columns in coding order, by falling Hessian diagonal."""
    residual_power: NDArray[np.float64]
    """(cols,) D_j, 0 for inputs that calibration never saw."""
    sensitivity: NDArray[np.float64]
    """(rows,) g_r, damage of a unit of squared output error."""
    damp_ratio: float | None
    """Damping that the factorization took; None without a factor."""


def curvature_of(
    shape: tuple[int, int],
    *,
    hessian: NDArray[np.float32] | None = None,
    sensitivity: NDArray[np.float32] | None = None,
    damp_ratio: float = 0.03,
    like: Curvature | None = None,
) -> Curvature:
    """Factor a Hessian and lift the rows that calibration hardly saw.

    Parameters
    ----------
    shape : rows and columns of the matrix
    hessian : (cols, cols) float32, mean of ``x x^T`` per token; None for the identity
    sensitivity : (rows,) float32, mean squared gradient of the loss by the row's output; None for
        ones
    damp_ratio : share of the mean diagonal added before the factorization
    like : a curvature of the same Hessian, whose factor is taken

    Raises
    ------
    InvalidArgumentError
        A shape does not fit, or a value is not finite or negative.
    """
    rows, cols = shape
    weights = _row_weights(sensitivity, rows)
    if like is not None:
        return replace(like, sensitivity=weights)
    identity = Curvature(
        hessian=None,
        factor=None,
        order=np.arange(cols),
        residual_power=np.ones(cols),
        sensitivity=weights,
        damp_ratio=None,
    )
    if hessian is None or not cols:
        return identity
    check_hessian(hessian, cols)
    diagonal = np.diagonal(hessian)
    order = np.argsort(-diagonal, kind="stable")
    factor, used = inverse_factor(hessian[np.ix_(order, order)], damp_ratio=damp_ratio)
    if used is None:  # nothing to feed back along: zeros, or no second moment at all
        return identity
    power = np.empty(cols)
    power[order] = np.diagonal(factor).astype(np.float64) ** -2.0
    power[diagonal == 0] = 0.0
    return Curvature(
        hessian=hessian,
        factor=factor,
        order=order,
        residual_power=power,
        sensitivity=weights,
        damp_ratio=used,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Scales of a matrix as they will be stored."""

    rows: NDArray[np.float32]
    """(rows, 1), 0 for rows that are not worth a code."""
    columns: NDArray[np.float32] | None
    """(cols,), or None where all are 1."""


def equal_slope_steps(weights: NDArray[np.float32], curvature: Curvature, slope: float) -> Steps:
    """Steps at which the last byte of each row buys the same.

    Parameters
    ----------
    weights : (rows, cols) float32
    curvature : how its errors hurt
    slope : the constant ``sqrt(g_r D) s``, more than 0. Steps go no finer than 8-bit codes reach,
        and rows whose step is twice their largest weight are zeros

    Notes
    -----
    Reverse water-filling for a Gaussian source: Cover and Thomas, "Elements of Information
    Theory", section 10.3; the column steps are those of the weights behind error feedback, whose
    errors cost ``D_j`` each.
    """
    columns, largest, unit = _largest_and_unit(weights, curvature)
    # Relative to the middle row, so that the size of the whole follows the slope smoothly.
    middle = float(np.median(unit))
    wanted = slope * middle * _snap(unit / middle, ROW_STEPS_PER_OCTAVE)
    finest = largest / (MAX_CODE - 1)
    steps = np.maximum(wanted, finest)
    held = (steps > wanted) & (finest > 0)
    steps[held] = np.exp2(
        np.ceil(np.log2(finest[held]) * ROW_STEPS_PER_OCTAVE) / ROW_STEPS_PER_OCTAVE
    )
    steps[wanted >= 2 * largest] = 0.0
    return Steps(rows=steps.astype(np.float32)[:, None], columns=columns)


def quantize_at(
    weights: NDArray[np.float32], curvature: Curvature, slope: float
) -> tuple[QuantizedTensor, NDArray[np.float64]]:
    """A matrix in steps of a slope, and the damage of each of its rows.

    Parameters
    ----------
    weights : (rows, cols) float32, finite
    curvature, slope : see :func:`equal_slope_steps`

    Returns
    -------
    tensor : codes, scales and column scales; shape and dtype are those of ``weights``
    damage : (rows,) float64
    """
    steps = equal_slope_steps(weights, curvature, slope)
    dtype = _scale_dtype(steps)
    scales = steps.rows.astype(dtype)
    columns = None if steps.columns is None else steps.columns.astype(dtype)
    codes = _codes(weights, curvature, scales.astype(np.float32), columns)
    reach = int(np.abs(codes).max(initial=0))
    grid = Grid(lo=-reach, hi=reach, scale_dtype=dtype, has_column_scales=columns is not None)
    tensor = QuantizedTensor(
        shape=weights.shape,
        dtype=weights.dtype,
        grid=grid,
        codes=codes,
        scales=scales,
        column_scales=columns,
    )
    return tensor, damage_by_row(weights, tensor.dequantize(), curvature)


def damage_by_row(
    weights: NDArray[np.float32], dequantized: NDArray[np.float32], curvature: Curvature
) -> NDArray[np.float64]:
    """``1/2 g_r d_r H d_r^T`` of each row's error ``d_r``, (rows,) float64.

    Notes
    -----
    With ``g`` from the gradients of the loss this is the expected rise of the loss, in nats a
    token, of second order and with inputs and gradients taken as independent: Martens and Grosse,
    K-FAC, arXiv:1503.05671.
    """
    delta = weights - dequantized
    image = delta if curvature.hessian is None else delta @ curvature.hessian
    squares = np.einsum("rc,rc->r", image, delta, dtype=np.float64)
    damage: NDArray[np.float64] = 0.5 * curvature.sensitivity * np.maximum(squares, 0.0)
    return damage


def slope_range(weights: NDArray[np.float32], curvature: Curvature) -> tuple[float, float] | None:
    """Base 2 logarithms of two slopes: at the first all steps are the finest, at the second all
    codes are zero. None for a matrix of zeros."""
    largest, unit = _largest_and_unit(weights, curvature)[1:]
    live = largest > 0
    if not live.any():
        return None
    with np.errstate(over="ignore"):
        ends = np.log2(largest[live]) - np.log2(unit[live])
    return float(ends.min()) - 8.0, float(ends.max()) + 2.0


def steps_in_deviations(
    weights: NDArray[np.float32], curvature: Curvature, log_slope: float
) -> NDArray[np.float64]:
    """Root mean square of each row over its step, (rows,) float64; 0 for rows without codes."""
    columns, largest, unit = _largest_and_unit(weights, curvature)
    scaled = weights if columns is None else weights / columns
    deviations = np.sqrt(np.einsum("rc,rc->r", scaled, scaled, dtype=np.float64) / scaled.shape[1])
    steps = np.maximum(2.0**log_slope * unit, largest / (MAX_CODE - 1))
    ratios = np.zeros(len(steps))
    np.divide(deviations, steps, out=ratios, where=(steps > 0) & (steps < 2 * largest))
    return ratios


def _largest_and_unit(
    weights: NDArray[np.float32], curvature: Curvature
) -> tuple[NDArray[np.float32] | None, NDArray[np.float64], NDArray[np.float64]]:
    """Column scales; the largest magnitude of each row under them; its step at a slope of one."""
    columns = _column_scales(curvature)
    scaled = weights if columns is None else weights / columns
    largest = np.abs(scaled).max(axis=1, initial=0.0).astype(np.float64)
    live = curvature.residual_power[curvature.residual_power > 0]
    power = live.mean() if columns is None else np.exp(np.log(live).mean())
    return columns, largest, 1.0 / np.sqrt(curvature.sensitivity * power)


def _row_weights(sensitivity: NDArray[np.float32] | None, rows: int) -> NDArray[np.float64]:
    if sensitivity is None:
        return np.ones(rows)
    weights = np.asarray(sensitivity, dtype=np.float64)
    if weights.shape != (rows,):
        raise InvalidArgumentError(
            f"sensitivity has shape {weights.shape}, the matrix has {rows} rows"
        )
    good = np.isfinite(weights) & (weights >= 0)
    if not good.all():
        row = int(np.argmin(good))
        raise InvalidArgumentError(
            f"sensitivity has {weights[row]} at row {row}, expected a number of 0 or more"
        )
    lifted = np.maximum(weights, MIN_SENSITIVITY * weights.mean())
    return lifted if lifted.any() else np.full(rows, float(np.finfo(np.float32).tiny))


def _codes(
    weights: NDArray[np.float32],
    curvature: Curvature,
    scales: NDArray[np.float32],
    columns: AnyArray | None,
) -> NDArray[np.int8]:
    scaled, factor = weights, curvature.factor
    if factor is None:
        return round_to_nearest(weights, scales, Grid.symmetric(8))
    order = curvature.order
    if columns is not None:  # inputs x c instead of x: H becomes c H c, its inverse's factor U / c
        wide = columns.astype(np.float32)
        scaled, factor = weights / wide, factor / wide[order]
    live = np.where(curvature.residual_power == 0, np.float32(0), scaled)
    codes = np.empty(weights.shape, dtype=np.int8)
    codes[:, order] = gptq_quantize(
        np.ascontiguousarray(live[:, order]),
        np.ascontiguousarray(factor),
        np.ascontiguousarray(scales),
        lo=-MAX_CODE,
        hi=MAX_CODE,
        threads=1,  # matrices are worked on side by side
    )
    return codes


def _column_scales(curvature: Curvature) -> NDArray[np.float32] | None:
    """``(D_j / geometric mean)^-1/2`` on a coarse grid; None where that saves next to nothing."""
    power = curvature.residual_power
    live = power > 0
    if curvature.factor is None or not live.any():
        return None
    logs = np.log2(power[live])
    if 0.5 * (np.log2(power[live].mean()) - logs.mean()) < COLUMN_GAIN_BITS:
        return None
    octaves = np.zeros(len(power))
    octaves[live] = np.clip(0.5 * (logs.mean() - logs), -MAX_COLUMN_OCTAVES, MAX_COLUMN_OCTAVES)
    return _snap(np.exp2(octaves), COLUMN_STEPS_PER_OCTAVE).astype(np.float32)


def _snap(values: NDArray[np.float64], per_octave: int) -> NDArray[np.float64]:
    """The nearest powers of two to a fraction of an octave."""
    snapped: NDArray[np.float64] = np.exp2(np.rint(np.log2(values) * per_octave) / per_octave)
    return snapped


def _scale_dtype(steps: Steps) -> str:
    """float16 where its eleven bits hold every step, float32 otherwise."""
    used = steps.rows[steps.rows > 0]
    info = np.finfo(np.float16)
    fits = not used.size or (info.tiny <= used.min() and used.max() <= info.max)
    return "float16" if fits else "float32"
