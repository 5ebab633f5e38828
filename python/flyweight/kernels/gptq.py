"""GPTQ column updates for one weight matrix."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flyweight.kernels.dispatch import implementation
from flyweight.kernels.parallel import thread_count
from flyweight.reference import gptq as reference
from flyweight.typing import Codes

__all__ = ["gptq_quantize"]


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
    threads: int | None = None,
) -> Codes:
    """Codes column by column, each column's error spread over the columns that follow.

    Parameters
    ----------
    weights : (rows, cols) float32, C-contiguous, columns in coding order; not modified
    inverse_factor : (cols, cols) float32, upper triangular U with ``inverse(H) = U.T @ U``; entries
        below the diagonal are not used
    scales : (rows, groups) float32, step of the grid; a scale of zero gives the code of zero
    column_groups : (cols,) int32, the column of ``scales`` that each column uses; may be left out
        with one scale per row
    zero_points : (rows, groups) float32, code that stands for 0.0; zeros if left out
    lo, hi : lowest and highest code, ``-128 <= lo <= hi <= 127``
    block_cols : columns whose errors are spread together; speed only
    threads : threads that share the rows; None for one per processor; speed only

    Returns
    -------
    (rows, cols) int8

    Raises
    ------
    InvalidArgumentError
        A value that is not finite (the message has row and column), a diagonal entry that is not
        positive, shapes that do not fit together, or an argument out of range.
    TypeError
        An array that is not C-contiguous or not of the dtype above.

    Notes
    -----
    With ``w`` the weights as updated so far, ``code = clip(round_half_even(w / s + z), lo, hi)``,
    ``error = (w - s * (code - z)) / U[j, j]`` and ``w[k] -= error * U[j, k]`` for ``k > j``, in
    float32 with both products fused into their subtraction, in the order of j. Rows do not see each
    other. The result depends neither on ``block_cols`` nor on threads or the instruction set, and
    with an identity factor it is round to nearest.

    References
    ----------
    Frantar et al. 2022, "GPTQ", arXiv:2210.17323, algorithm 1.
    """
    return implementation(reference.gptq_quantize)(
        weights,
        inverse_factor,
        scales,
        column_groups=column_groups,
        zero_points=zero_points,
        lo=lo,
        hi=hi,
        block_cols=block_cols,
        threads=thread_count(threads),
    )
