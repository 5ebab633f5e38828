"""What a section holds: a tensor as codes on a grid, or as plain values; and its arrays by role."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flyweight.quant.grid import QuantizedTensor, matrix_shape
from flyweight.typing import AnyArray

__all__ = ["PlainTensor", "Stored", "arrays_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainTensor:
    """A tensor kept as it is, or as another float dtype of fewer bytes."""

    values: AnyArray
    """Any shape, at most 8 axes, in the dtype that is stored."""
    dtype: np.dtype[np.generic]
    """Dtype that loading gives back; differs from that of ``values`` for float tensors only."""


Stored = QuantizedTensor | PlainTensor


def arrays_of(tensor: Stored) -> dict[str, AnyArray]:
    """Arrays of a tensor by role, in the order of its parts.

    Returns
    -------
    role (``codes``, ``scales``, ... or ``data``) to matrix: codes as uint8 symbols, column scales
    as one row

    References
    ----------
    docs/format.md, "Parts".
    """
    if not isinstance(tensor, QuantizedTensor):
        return {"data": tensor.values.reshape(matrix_shape(tensor.values.shape or (1,)))}
    symbols = (tensor.codes.astype(np.int16) - tensor.grid.lo).astype(np.uint8)
    arrays: dict[str, AnyArray] = {"codes": symbols, "scales": tensor.scales}
    if tensor.zero_points is not None:
        arrays["zero_points"] = tensor.zero_points
    if tensor.column_scales is not None:
        arrays["column_scales"] = tensor.column_scales[None]
    return arrays
